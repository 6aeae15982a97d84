def test_import():
    import tomada.socket  # noqa: F401
