//! The settings of sessions: certificates, keys and rules.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::context::ChooseContext;
use super::secret::Secret;
use super::session_table::TableLimits;
use crate::net::sys::openssl::{add_chain_certificate, set_psk_identity_hint};

/// The default of [`Settings::mtu`]: what fits through tunnels over Ethernet.
pub const DEFAULT_MTU: usize = 1400;
/// By how much OpenSSL exceeds its MTU in a handshake: it forgets the nonce and the tag of the first
/// encrypted record (8 and 16 bytes), and the record before that (`ChangeCipherSpec`, 14 bytes).
const EXCESS: usize = 24;
/// The least [`Settings::mtu`]: with less than 256 bytes, OpenSSL ends the session.
pub const LEAST_MTU: usize = 256 + EXCESS;
/// As good as no limit.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// The ciphers of a context whose user has not chosen any: forward secrecy, and pre-shared keys. The
/// last three exclusions are CBC, as RFC 9325, section 4.2.1, recommends: no other cipher has a code of
/// SHA-1 or SHA-2.
const CIPHERS: &str = "DEFAULT:!aNULL:!eNULL:!3DES:!RC4:!MD5:!DSS:!SHA1:!SHA256:!SHA384";
/// `SSL_OP_NO_ENCRYPT_THEN_MAC`. With encrypt-then-MAC (RFC 7366), which is for CBC, OpenSSL ends a
/// session when a record is not authentic, and anyone can send one.
const NO_ENCRYPT_THEN_MAC: SslOptions = SslOptions::from_bits_retain(1 << 19);
/// Where Linux distributions keep the certificates that they trust. An OpenSSL that was compiled
/// with this crate does not know.
const SYSTEM_CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Which side of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Begins sessions.
    Client,
    /// Accepts sessions.
    Server,
}

/// Whether the peer's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// It is not.
    Nothing,
    /// A certificate is verified; a client need not have one.
    Optional,
    /// A certificate is required.
    Required,
}

/// Returns a client's identity and key for a server's hint, or none.
pub type PskClient = dyn Fn(Option<&[u8]>) -> Option<(Vec<u8>, Secret)> + Send + Sync;
/// Returns the key for a client's identity, or none.
pub type PskServer = dyn Fn(&[u8]) -> Option<Secret> + Send + Sync;

/// A certificate with its chain and its private key.
#[derive(Clone)]
struct Identity {
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// The settings of a [`Context`].
#[derive(Clone)]
pub struct Settings {
    /// Whether the peer's certificate is verified.
    pub verify: Verify,
    /// Whether a client checks that the certificate is for the server's name.
    pub check_hostname: bool,
    /// The lowest and the highest version.
    pub versions: (SslVersion, SslVersion),
    /// The longest datagram of a session in bytes, without the headers of IP and UDP.
    pub mtu: usize,
    /// How many sessions a socket may have, and for how long.
    pub limits: TableLimits,
    /// Chooses a client's identity and key.
    pub psk_client: Option<Arc<PskClient>>,
    /// Finds the key of a client's identity.
    pub psk_server: Option<Arc<PskServer>>,
    /// A server's hint at the identity that it wants.
    pub psk_hint: Option<CString>,
    /// Chooses the context of each session of a server.
    pub choose_context: Option<Arc<ChooseContext>>,
    identities: Vec<Identity>,
    trusted: Vec<X509>,
    trusts_system: bool,
    ciphers: Option<String>,
    alpn: Vec<u8>,
    srtp: Option<String>,
    key_log: Option<(PathBuf, Arc<File>)>,
}

/// Why a setting was not accepted.
#[derive(Debug)]
pub enum ContextError {
    /// A file could not be read.
    File(PathBuf, io::Error),
    /// The value is of no use, for the reason in the text.
    Invalid(String),
    /// OpenSSL failed.
    OpenSsl(ErrorStack),
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Invalid(text) => f.write_str(text),
            Self::OpenSsl(stack) => fmt::Display::fmt(stack, f),
        }
    }
}

impl From<ErrorStack> for ContextError {
    fn from(error: ErrorStack) -> Self {
        Self::OpenSsl(error)
    }
}

impl Settings {
    /// The MTU with which OpenSSL does not exceed [`mtu`](Self::mtu) in a handshake.
    pub(super) fn handshake_mtu(&self) -> usize {
        self.mtu - EXCESS
    }

    pub(super) fn new(role: Role) -> Self {
        let is_client = role == Role::Client;
        Self {
            verify: if is_client { Verify::Required } else { Verify::Nothing },
            check_hostname: is_client,
            versions: (SslVersion::DTLS1_2, SslVersion::DTLS1_2),
            mtu: DEFAULT_MTU,
            limits: TableLimits {
                // A client's session lasts until one of the sides ends it.
                idle_time: if is_client { CENTURY } else { TableLimits::default().idle_time },
                ..TableLimits::default()
            },
            psk_client: None,
            psk_server: None,
            psk_hint: None,
            choose_context: None,
            identities: Vec::new(),
            trusted: Vec::new(),
            trusts_system: false,
            ciphers: None,
            alpn: Vec::new(),
            srtp: None,
            key_log: None,
        }
    }

    /// The ciphers, in the format of `openssl-ciphers(1)`.
    pub(super) fn ciphers(&self) -> &str {
        self.ciphers.as_deref().unwrap_or(CIPHERS)
    }

    /// Whether there is a certificate, or a way to find keys.
    pub(super) fn has_identity(&self) -> bool {
        !self.identities.is_empty() || self.psk_server.is_some()
    }

    /// Adds a certificate chain with its key, both in PEM files; the key may be in the first one.
    /// `password` is asked if the key is encrypted.
    pub fn load_cert_chain(
        &mut self,
        certificates: &Path,
        key: Option<&Path>,
        password: impl FnOnce() -> Option<Secret>,
    ) -> Result<(), ContextError> {
        let pem = Secret::from(read(certificates)?);
        let chain = X509::stack_from_pem(&pem)
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or_else(|| no_pem(certificates, "certificate"))?;
        let key_file = key.unwrap_or(certificates);
        let pem = if key.is_some() { read(key_file)?.into() } else { pem };
        let (mut was_asked, mut was_answered) = (false, false);
        let mut password = Some(password);
        let key = PKey::private_key_from_pem_callback(&pem, |room| {
            was_asked = true;
            let given = password.take().and_then(|password| password());
            let given = given.as_deref().unwrap_or_default();
            was_answered = !given.is_empty();
            let len = given.len().min(room.len());
            room[..len].copy_from_slice(&given[..len]);
            Ok(len)
        });
        let key = key.map_err(|_| {
            let name = key_file.display();
            ContextError::Invalid(match (was_asked, was_answered) {
                (false, _) => return no_pem(key_file, "private key"),
                (true, false) => format!("the key in {name} is encrypted: pass its password"),
                (true, true) => format!("the password for the key in {name} is wrong"),
            })
        })?;
        if !chain[0].public_key()?.public_eq(&key) {
            let (certificates, key) = (certificates.display(), key_file.display());
            let text =
                format!("the key in {key} does not belong to the certificate in {certificates}");
            return Err(ContextError::Invalid(text));
        }
        self.identities.retain(|other| other.key.id() != key.id());
        self.identities.push(Identity { chain, key });
        Ok(())
    }

    /// Trusts certificates in PEM, or one in DER; returns how many they are.
    pub fn trust(&mut self, bytes: &[u8]) -> Result<usize, ContextError> {
        let certificates = X509::stack_from_pem(bytes)
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .or_else(|| X509::from_der(bytes).ok().map(|certificate| vec![certificate]))
            .ok_or_else(|| ContextError::Invalid("not a certificate, in PEM or DER".to_owned()))?;
        let count = certificates.len();
        self.trusted.extend(certificates);
        Ok(count)
    }

    /// Trusts the certificates in a PEM file.
    pub fn trust_file(&mut self, path: &Path) -> Result<(), ContextError> {
        let pem = read(path)?;
        self.trust(&pem).map(drop).map_err(|_| no_pem(path, "certificate"))
    }

    /// Trusts the certificates in the PEM files of a directory.
    pub fn trust_directory(&mut self, path: &Path) -> Result<(), ContextError> {
        let failed = |error| ContextError::File(path.to_owned(), error);
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?.path();
            if entry.is_file()
                && let Ok(pem) = std::fs::read(&entry)
            {
                let _ = self.trust(&pem); // a directory has other files, too
            }
        }
        Ok(())
    }

    /// Trusts the certificates that the system trusts.
    pub fn trust_system(&mut self) {
        self.trusts_system = true;
    }

    /// The number of trusted certificates, without those of the system.
    pub fn trusted(&self) -> usize {
        self.trusted.len()
    }

    pub(super) fn trusts_any(&self) -> bool {
        self.trusts_system || !self.trusted.is_empty()
    }

    /// Chooses ciphers, in the format of `openssl-ciphers(1)`.
    pub fn set_ciphers(&mut self, ciphers: &str) -> Result<(), ContextError> {
        let mut scratch = SslContextBuilder::new(SslMethod::dtls())?;
        if ciphers.contains('\0') || scratch.set_cipher_list(ciphers).is_err() {
            let text = format!("no cipher can be selected from {ciphers:?}");
            return Err(ContextError::Invalid(text));
        }
        self.ciphers = Some(ciphers.to_owned());
        Ok(())
    }

    /// Offers or accepts application protocols, best first.
    pub fn set_alpn<'a>(
        &mut self,
        protocols: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), ContextError> {
        let mut alpn = Vec::new();
        for protocol in protocols {
            let len = u8::try_from(protocol.len()).ok().filter(|&len| len > 0);
            let text = "a protocol name must have 1 to 255 bytes";
            alpn.push(len.ok_or_else(|| ContextError::Invalid(text.to_owned()))?);
            alpn.extend(protocol);
        }
        self.alpn = alpn;
        Ok(())
    }

    /// Offers or accepts profiles of SRTP by OpenSSL's names, best first.
    pub fn set_srtp(&mut self, profiles: &[String]) -> Result<(), ContextError> {
        let joined = profiles.join(":");
        let mut scratch = SslContextBuilder::new(SslMethod::dtls())?;
        let is_known = profiles.is_empty()
            || !joined.contains('\0') && scratch.set_tlsext_use_srtp(&joined).is_ok();
        if !is_known {
            let text = format!("no SRTP profiles can be selected from {joined:?}");
            return Err(ContextError::Invalid(text));
        }
        self.srtp = (!profiles.is_empty()).then_some(joined);
        Ok(())
    }

    /// Appends the secrets of all sessions to a file, in the format of `SSLKEYLOGFILE`. A new file is
    /// for its owner only.
    pub fn log_keys(&mut self, path: Option<&Path>) -> Result<(), ContextError> {
        self.key_log = match path {
            None => None,
            Some(path) => {
                let file = File::options().append(true).create(true).mode(0o600).open(path);
                let file = file.map_err(|error| ContextError::File(path.to_owned(), error))?;
                Some((path.to_owned(), Arc::new(file)))
            }
        };
        Ok(())
    }

    /// The file that keys are logged to.
    pub fn key_log(&self) -> Option<&Path> {
        self.key_log.as_ref().map(|(path, _)| path.as_path())
    }

    pub(super) fn builder(&self, role: Role) -> Result<SslContextBuilder, ContextError> {
        let is_server = role == Role::Server;
        let method = if is_server { SslMethod::dtls_server() } else { SslMethod::dtls_client() };
        let mut builder = SslContextBuilder::new(method)?;
        builder.set_options(
            SslOptions::NO_RENEGOTIATION
                | SslOptions::NO_QUERY_MTU
                | SslOptions::NO_COMPRESSION
                | SslOptions::CIPHER_SERVER_PREFERENCE
                | NO_ENCRYPT_THEN_MAC,
        );
        builder.set_mode(SslMode::RELEASE_BUFFERS);
        builder.set_min_proto_version(Some(self.versions.0))?;
        builder.set_max_proto_version(Some(self.versions.1))?;
        builder.set_cipher_list(self.ciphers())?;
        builder.set_verify(self.verify_mode(role));
        builder.set_cert_store(self.store()?.build());
        for Identity { chain, key } in &self.identities {
            builder.set_certificate(&chain[0])?;
            builder.set_private_key(key)?;
            for certificate in &chain[1..] {
                add_chain_certificate(&builder, certificate)?;
            }
        }
        if is_server {
            builder.set_session_id_context(b"tomada")?;
            builder.set_session_cache_mode(SslSessionCacheMode::SERVER);
            // The address was checked before OpenSSL gets to see a datagram.
            builder.set_cookie_verify_cb(|_, _| true);
            builder.set_cookie_generate_cb(|_, _| Err(ErrorStack::get()));
            if self.verify != Verify::Nothing {
                for certificate in &self.trusted {
                    builder.add_client_ca(certificate)?;
                }
            }
        }
        self.set_up_alpn(&mut builder, role)?;
        if let Some(profiles) = &self.srtp {
            builder.set_tlsext_use_srtp(profiles)?;
        }
        self.set_up_psk(&mut builder)?;
        if let Some((_, file)) = &self.key_log {
            let file = Arc::clone(file);
            builder.set_keylog_callback(move |_, line| {
                // One write appends the whole line. A full disk ends no session.
                let _ = (&*file).write_all(format!("{line}\n").as_bytes());
            });
        }
        Ok(builder)
    }

    pub(super) fn verify_mode(&self, role: Role) -> SslVerifyMode {
        match (self.verify, role) {
            (Verify::Nothing, _) => SslVerifyMode::NONE,
            (Verify::Required, Role::Server) => {
                SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT
            }
            _ => SslVerifyMode::PEER,
        }
    }

    fn store(&self) -> Result<X509StoreBuilder, ContextError> {
        let mut store = X509StoreBuilder::new()?;
        if self.trusts_system {
            store.set_default_paths()?;
            if cfg!(feature = "vendored") && std::env::var_os("SSL_CERT_FILE").is_none() {
                let files = SYSTEM_CERTIFICATES.iter().filter_map(|path| std::fs::read(path).ok());
                for certificate in
                    files.take(1).flat_map(|pem| X509::stack_from_pem(&pem)).flatten()
                {
                    store.add_cert(certificate)?;
                }
            }
        }
        for certificate in &self.trusted {
            store.add_cert(certificate.clone())?;
        }
        Ok(store)
    }

    fn set_up_alpn(&self, builder: &mut SslContextBuilder, role: Role) -> Result<(), ErrorStack> {
        if self.alpn.is_empty() {
            return Ok(());
        }
        if role == Role::Client {
            return builder.set_alpn_protos(&self.alpn);
        }
        let supported = self.alpn.clone();
        builder.set_alpn_select_callback(move |_, offered| {
            // As with the ssl module, a session without a common protocol has none.
            select_from(&supported, offered).ok_or(AlpnError::NOACK)
        });
        Ok(())
    }

    fn set_up_psk(&self, builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        if let Some(find) = self.psk_client.clone() {
            builder.set_psk_client_callback(move |_, hint, identity_room, key_room| {
                let Some((identity, key)) = find(hint) else { return Ok(0) };
                let fits = identity.len() < identity_room.len() && key.len() <= key_room.len();
                if !fits || key.is_empty() || identity.contains(&0) {
                    return Ok(0);
                }
                identity_room[..identity.len()].copy_from_slice(&identity);
                identity_room[identity.len()] = 0;
                key_room[..key.len()].copy_from_slice(&key);
                Ok(key.len())
            });
        }
        if let Some(find) = self.psk_server.clone() {
            builder.set_psk_server_callback(move |_, identity, room| {
                let Some(key) = find(identity.unwrap_or_default()) else { return Ok(0) };
                let len = if key.len() > room.len() { 0 } else { key.len() };
                room[..len].copy_from_slice(&key[..len]);
                Ok(len)
            });
        }
        match &self.psk_hint {
            Some(hint) => set_psk_identity_hint(builder, hint),
            None => Ok(()),
        }
    }
}

/// The first supported protocol that was offered, as a part of the offer.
fn select_from<'a>(supported: &[u8], offered: &'a [u8]) -> Option<&'a [u8]> {
    let find = |name: &[u8]| names(offered).find(|&other| other == name);
    names(supported).find_map(find)
}

/// The names in a list in ALPN's format.
fn names(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&len, rest) = list.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        list = rest;
        Some(name)
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ContextError> {
    std::fs::read(path).map_err(|error| ContextError::File(path.to_owned(), error))
}

fn no_pem(path: &Path, what: &str) -> ContextError {
    ContextError::Invalid(format!("there is no {what} in PEM format in {}", path.display()))
}
