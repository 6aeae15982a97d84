//! Settings as sessions use them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use openssl::error::ErrorStack;
use openssl::ssl::{
    NameType, SniError, Ssl, SslAlert, SslContext, SslContextBuilder, SslOptions, SslRef,
    SslSession, SslSessionCacheMode,
};
use openssl::x509::verify::X509CheckFlags;

use super::cookie::{CookieRoot, Cookies};
use super::settings::{ContextError, Role, Settings, Verify};
use crate::net::address::Address;
use crate::net::fork_mutex::{ForkMutex, Inherit, leave_to_parent};
use crate::net::sys::openssl::{resume, session_stats};

/// The number of servers whose sessions a client keeps, to resume them.
const MOST_RESUMABLE: usize = 1024;
/// Added to the ciphers of a client that accepts no certificate: only keys prove who the server is.
const ONLY_PSK: &str = ":!kRSA:!aRSA:!aECDSA:!aDSS:!aNULL";

/// Chooses the context of a session by the name that a client asks for, or the alert that ends it. No
/// context is the one that the session has begun with; no alert is `unrecognized_name`.
pub type ChooseContext =
    dyn Fn(Option<&str>) -> Result<Option<Arc<Context>>, Option<SslAlert>> + Send + Sync;

/// Certificates, keys and rules that many sessions share.
pub struct Context {
    role: Role,
    settings: ForkMutex<Arc<Settings>>,
    /// OpenSSL's context, made from the settings when a session needs it.
    built: ForkMutex<Option<Arc<Built>>>,
    /// A server's, as soon as it is prepared.
    cookie_root: ForkMutex<Option<Arc<CookieRoot>>>,
}

/// A context as its sessions use it: later changes of the settings do not concern them.
pub(super) struct Built {
    context: SslContext,
    settings: Arc<Settings>,
    role: Role,
    /// Sessions that a client may resume.
    resumable: ForkMutex<Resumable>,
}

#[derive(Default)]
struct Resumable(HashMap<Server, SslSession>);

/// A server, by its address and by the name that its certificate was for.
type Server = (Address, Option<String>);

/// A change replaces all settings at once: a child has those before it, or those after it.
impl Inherit for Arc<Settings> {
    fn inherit(&mut self) {}
}

/// A child shares what its parent's context has generated.
impl Inherit for Option<Arc<Built>> {
    fn inherit(&mut self) {}
}

/// As above.
impl Inherit for Option<Arc<CookieRoot>> {
    fn inherit(&mut self) {}
}

/// A thread of the parent may have been adding a session.
impl Inherit for Resumable {
    fn inherit(&mut self) {
        leave_to_parent(&mut self.0);
    }
}

impl Context {
    /// Creates a context with safe settings: a client verifies certificates and host names.
    pub fn new(role: Role) -> Self {
        let settings = ForkMutex::new(Arc::new(Settings::new(role)));
        Self { role, settings, built: ForkMutex::default(), cookie_root: ForkMutex::default() }
    }

    /// Which side of its sessions a context is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Reads the settings.
    pub fn read<T>(&self, read: impl FnOnce(&Settings) -> T) -> T {
        read(&self.settings.lock())
    }

    /// Changes the settings for sessions that begin later.
    pub fn change<T>(&self, change: impl FnOnce(&mut Settings) -> T) -> T {
        let mut settings = self.settings.lock();
        let mut new = Settings::clone(&settings);
        let changed = change(&mut new);
        let old = (std::mem::replace(&mut *settings, Arc::new(new)), self.built.lock().take());
        drop(settings);
        drop(old); // unlocked, because it may run the code of what callbacks refer to
        changed
    }

    /// OpenSSL's session counters, by their names in the `ssl` module. They begin anew when a
    /// setting is changed.
    pub fn session_stats(&self) -> Result<Vec<(&'static str, i64)>, ContextError> {
        Ok(session_stats(&self.build()?.context))
    }

    /// Whether a server has a certificate or keys; without, every handshake would fail.
    pub fn has_identity(&self) -> bool {
        self.settings.lock().has_identity()
    }

    /// Prepares for sessions, with the current settings.
    pub(super) fn build(&self) -> Result<Arc<Built>, ContextError> {
        let settings = self.settings.lock();
        let mut built = self.built.lock();
        if let Some(built) = &*built {
            return Ok(Arc::clone(built));
        }
        let mut builder = settings.builder(self.role)?;
        if let Some(choose) = settings.choose_context.clone() {
            set_up_choice(&mut builder, choose);
        }
        let context = builder.build();
        let new = Arc::new(Built {
            context,
            settings: Arc::clone(&settings),
            role: self.role,
            resumable: ForkMutex::default(),
        });
        *built = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Prepares for sessions, so that processes which are forked later share what the context
    /// generates, such as the keys of tickets and the secrets of cookies.
    pub fn prepare(&self) -> Result<(), ContextError> {
        self.build()?;
        self.cookies().map(drop)
    }

    /// The cookies of a server.
    pub(super) fn cookies(&self) -> Result<Option<Cookies>, ContextError> {
        if self.role == Role::Client {
            return Ok(None);
        }
        let (mut root, now) = (self.cookie_root.lock(), Instant::now());
        if root.is_none() {
            *root = Some(Arc::new(CookieRoot::random(now)?));
        }
        Ok(root.clone().map(|root| Cookies::new(root, now)))
    }
}

/// Calls a function for each session, when the name that the client asks for is known.
fn set_up_choice(builder: &mut SslContextBuilder, choose: Arc<ChooseContext>) {
    // OpenSSL resumes a session before the function is called: it would skip the checks of the
    // context that the function chooses.
    builder.set_options(SslOptions::NO_TICKET);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_servername_callback(move |ssl, alert| {
        let name = ssl.servername(NameType::HOST_NAME).map(ToOwned::to_owned);
        let chosen = choose(name.as_deref()).and_then(|context| {
            let failed = Some(SslAlert::INTERNAL_ERROR);
            let Some(context) = context else { return Ok(()) };
            let built = context.build().map_err(|_| failed)?;
            built.take_over(ssl).map_err(|_| failed)
        });
        chosen.map_err(|reason| {
            *alert = reason.unwrap_or(*alert);
            SniError::ALERT_FATAL
        })
    });
}

impl Built {
    /// Gives a session that has begun with another context the certificates, the trusted issuers
    /// and the rules for client certificates of this one.
    fn take_over(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_ssl_context(&self.context)?;
        ssl.set_verify(self.settings.verify_mode(self.role));
        Ok(())
    }

    /// Begins a session with a server, which resumes an earlier one if the server is willing.
    pub(super) fn start_client(
        &self,
        peer: Address,
        server_name: Option<&str>,
    ) -> Result<Ssl, ContextError> {
        let mut ssl = self.start(server_name)?;
        let server = (peer, server_name.map(ToOwned::to_owned));
        if let Some(session) = self.resumable.lock().0.get(&server) {
            resume(&mut ssl, session)?;
        }
        Ok(ssl)
    }

    /// Keeps a complete session of a client, to resume it later.
    pub(super) fn keep(&self, peer: Address, server_name: Option<String>, ssl: &SslRef) {
        let mut resumable = self.resumable.lock();
        let Resumable(resumable) = &mut *resumable;
        let server = (peer, server_name);
        if let Some(session) = ssl.session()
            && (resumable.len() < MOST_RESUMABLE || resumable.contains_key(&server))
        {
            resumable.insert(server, session.to_owned());
        }
    }

    /// The settings that the context was built with.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Begins a session; a client's is with the server of that name.
    pub(super) fn start(&self, server_name: Option<&str>) -> Result<Ssl, ContextError> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_mtu(self.settings.handshake_mtu() as u32)?;
        if self.role == Role::Server {
            ssl.set_accept_state();
            return Ok(ssl);
        }
        ssl.set_connect_state();
        let Settings { verify, check_hostname, psk_client, .. } = &*self.settings;
        let checks = *check_hostname && *verify != Verify::Nothing;
        let name = server_name.filter(|name| !name.is_empty());
        if checks && name.is_none() && psk_client.is_none() {
            let text = "check_hostname requires server_hostname: the name that the server's \
                        certificate is for";
            return Err(ContextError::Invalid(text.to_owned()));
        }
        let accepts_certificates = match verify {
            Verify::Required => self.settings.trusts_any() && (!checks || name.is_some()),
            _ => true,
        };
        if psk_client.is_some() && !accepts_certificates {
            let list = self.settings.ciphers().to_owned() + ONLY_PSK;
            ssl.set_cipher_list(&list)?;
        }
        let Some(name) = name else { return Ok(ssl) };
        let ip: Option<IpAddr> = name.parse().ok();
        if ip.is_none() {
            ssl.set_hostname(name)?;
        }
        if checks {
            let param = ssl.param_mut();
            param.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            match ip {
                Some(ip) => param.set_ip(ip)?,
                None => param.set_host(name)?,
            }
        }
        Ok(ssl)
    }
}
