"""Endpoints on trio."""
