"""The settings of sessions."""

import os
import ssl
import stat
import subprocess

import pytest

import skips
from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, session, trusting
from tomada import Server, dtls


def client():
    return dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)


def server():
    return dtls.Context(dtls.PROTOCOL_DTLS_SERVER)


def test_defaults_are_safe():
    assert client().verify_mode is dtls.CERT_REQUIRED
    assert client().check_hostname
    assert server().verify_mode is dtls.CERT_NONE
    for context in (client(), server()):
        assert context.minimum_version is dtls.DTLSVersion.DTLSv1_2
        assert context.keylog_filename is None


def test_check_hostname_and_verify_mode_depend_on_each_other():
    context = client()
    with pytest.raises(ValueError, match="check_hostname is enabled"):
        context.verify_mode = dtls.CERT_NONE
    context.check_hostname = False
    context.verify_mode = dtls.CERT_NONE
    context.check_hostname = True
    assert context.verify_mode is dtls.CERT_REQUIRED


def test_versions_stay_in_order():
    context = client()
    context.minimum_version = dtls.DTLSVersion.DTLSv1
    context.maximum_version = dtls.DTLSVersion.DTLSv1
    with pytest.raises(ValueError, match="must not be newer"):
        context.minimum_version = dtls.DTLSVersion.DTLSv1_2
    with pytest.raises(ValueError, match="valid DTLSVersion"):
        context.maximum_version = 0x0303


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mtu", 100),
        ("mtu", 70_000),
        ("max_sessions", 0),
        ("max_handshakes", 0),
        ("handshake_timeout", 0),
        ("idle_timeout", float("nan")),
        ("verify_mode", 3),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    context = server()
    before = getattr(context, name)
    with pytest.raises(ValueError, match=r".+"):
        setattr(context, name, value)
    assert getattr(context, name) == before


def test_set_ciphers_refuses_unknown_names():
    with pytest.raises(ValueError, match="no cipher can be selected"):
        client().set_ciphers("CAESAR")


def test_set_alpn_protocols_refuses_empty_and_long_names():
    for name in ("", "x" * 256):
        with pytest.raises(ValueError, match="1 to 255 bytes"):
            client().set_alpn_protocols([name])


def test_srtp_profiles_are_negotiated():
    client, server = psk_client(), psk_server()
    client.set_srtp_profiles(["SRTP_AES128_CM_SHA1_80", "SRTP_AEAD_AES_128_GCM"])
    server.set_srtp_profiles(["SRTP_AEAD_AES_128_GCM"])
    with session(client, server) as (near, far):
        for sock in (near, far):
            assert sock.selected_srtp_profile() == "SRTP_AEAD_AES_128_GCM"
        # RFC 5764, 4.2: two keys and two salts.
        label, length = "EXTRACTOR-dtls_srtp", 2 * (16 + 12)
        material = near.session.export_keying_material(label, length)
        assert len(material) == length
        assert material == far.session.export_keying_material(label, length)
        assert material != far.session.export_keying_material(label, length, b"")
    server.set_srtp_profiles([])
    with session(client, server) as (near, _):
        assert near.selected_srtp_profile() is None


def test_set_srtp_profiles_refuses_unknown_names():
    for profiles in (["SRTP_ROT13"], [""], ["SRTP_AEAD_AES_128_GCM", "\0"]):
        with pytest.raises(ValueError, match="SRTP profiles"):
            client().set_srtp_profiles(profiles)


def test_sessions_are_resumed_by_their_identifiers(tmp_path):
    files = certificates()
    program = skips.program("openssl")
    context = server_of(files.ecdsa)
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=context) as echo:
        host, port = echo.address
        command = [program, "s_client", "-dtls1_2", "-no_ticket", "-connect", f"{host}:{port}"]
        stored = str(tmp_path / "session")
        for option, begins in (("-sess_out", b"New, "), ("-sess_in", b"Reused, ")):
            run = [*command, option, stored]
            done = subprocess.run(run, input=b"Q\n", capture_output=True, check=True, timeout=60)
            assert b"\n" + begins in done.stdout
        stats = context.session_stats()
        assert (stats["accept_good"], stats["hits"]) == (2, 1)


def test_session_stats_have_the_names_of_the_ssl_module():
    names = set(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).session_stats())
    assert set(client().session_stats()) == names


def test_callbacks_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        client().set_psk_client_callback("secret")
    with pytest.raises(TypeError, match="callable"):
        server().set_psk_server_callback({"identity": b"key"})
    with pytest.raises(ValueError, match="zero byte"):
        server().set_psk_server_callback(None, "\0")


def test_load_cert_chain_names_the_file(tmp_path):
    files = certificates()
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(FileNotFoundError) as caught:
        server().load_cert_chain(missing)
    assert caught.value.filename == missing
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ValueError, match=r"no certificate in PEM format in .*empty\.pem"):
        server().load_cert_chain(empty)
    with pytest.raises(ValueError, match=r"no private key in PEM format in .*ecdsa\.pem"):
        server().load_cert_chain(files.ecdsa[0])
    with pytest.raises(ValueError, match=r"the key in .*rsa\.key does not belong to the cert"):
        server().load_cert_chain(files.ecdsa[0], files.rsa[1])


def test_load_cert_chain_with_a_password():
    files = certificates()
    key = files.encrypted_key("sesame")
    for password in ("sesame", b"sesame", bytearray(b"sesame"), lambda: "sesame"):
        server().load_cert_chain(files.ecdsa[0], key, password)
    with pytest.raises(ValueError, match=r"the password for the key in .* is wrong"):
        server().load_cert_chain(files.ecdsa[0], key, "open")
    with pytest.raises(ValueError, match="is encrypted: pass its password"):
        server().load_cert_chain(files.ecdsa[0], key)


def test_load_verify_locations_takes_files_directories_and_bytes(tmp_path):
    files = certificates()
    with open(files.ca, "rb") as file:  # noqa: PTH123 - a path as users have it
        pem = file.read()
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "README").write_text("not a certificate")
    context = client()
    context.load_verify_locations(capath=tmp_path)
    context.load_verify_locations(cadata=pem)
    context.load_verify_locations(cadata=pem.decode())
    with pytest.raises(ValueError, match="not a certificate"):
        context.load_verify_locations(cadata=b"nonsense")
    with pytest.raises(TypeError, match="omitted"):
        context.load_verify_locations()
    assert dtls.create_default_context(cadata=pem).verify_mode is dtls.CERT_REQUIRED


def test_keylog_filename_collects_the_secrets_of_sessions(tmp_path):
    log = tmp_path / "keys.log"
    context = psk_client()
    context.keylog_filename = log
    with session(context, psk_server()):
        line = log.read_text().split()
        assert line[0] == "CLIENT_RANDOM"
        assert len(line[1]) == 64
    assert log.stat().st_mode & 0o077 == 0
    with pytest.raises(FileNotFoundError):
        context.keylog_filename = tmp_path / "missing" / "keys.log"


@pytest.mark.thread_unsafe(reason="it replaces the hook of the process")
def test_a_callback_that_raises_ends_the_handshake(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda about: reported.append(about.exc_type))
    context = psk_server()
    context.set_psk_server_callback(lambda identity: 1 / len(identity[:0]))
    client = psk_client()
    with pytest.raises(dtls.DTLSError), session(client, context):
        pass
    assert reported == [ZeroDivisionError]


def test_an_identity_may_be_any_bytes():
    identity = b"\xff\xfe\x01".decode("utf-8", "surrogateescape")
    with session(psk_client(identity, b"key"), psk_server({identity: b"key"})) as (_, far):
        assert far.session.psk_identity == identity


def test_a_client_that_cannot_check_the_name_accepts_no_certificate():
    files = certificates()
    context = trusting(files.ca)
    context.set_psk_client_callback(lambda _hint: ("tester", b"secret"))
    server = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    server.load_cert_chain(*files.elsewhere)
    with pytest.raises(dtls.DTLSError), session(context, server):
        pass


def test_a_key_file_that_cannot_be_read_is_named(tmp_path):
    files = certificates()
    key = tmp_path / "secret.key"
    key.touch(mode=stat.S_IWUSR)
    if os.access(key, os.R_OK):
        key.unlink()
        key.mkdir()
    with pytest.raises(OSError, match=r"secret\.key") as caught:
        server().load_cert_chain(files.ecdsa[0], key)
    assert caught.value.filename == str(key)


def test_openssl_version():
    assert dtls.OPENSSL_VERSION.startswith("OpenSSL 3") or dtls.OPENSSL_VERSION_NUMBER >= 0x30000000
