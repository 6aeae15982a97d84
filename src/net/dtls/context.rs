//! Settings as sessions use them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::error::ErrorStack;
use openssl::ssl::{
    NameType, SniError, Ssl, SslAlert, SslContext, SslContextBuilder, SslOptions, SslRef,
    SslSession, SslSessionCacheMode,
};
use openssl::x509::verify::X509CheckFlags;

use super::settings::{ContextError, Role, Settings, Verify};
use crate::net::address::Address;
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
    settings: Mutex<Settings>,
    choose: Mutex<Option<Arc<ChooseContext>>>,
    /// OpenSSL's context, made from the settings when a session needs it.
    built: Mutex<Option<Arc<Built>>>,
}

/// A context as its sessions use it: later changes of the settings do not concern them.
pub(super) struct Built {
    context: SslContext,
    settings: Settings,
    role: Role,
    /// Sessions that a client may resume.
    resumable: Mutex<HashMap<Server, SslSession>>,
}

/// A server, by its address and by the name that its certificate was for.
type Server = (Address, Option<String>);

impl Context {
    /// Creates a context with safe settings: a client verifies certificates and host names.
    pub fn new(role: Role) -> Self {
        let settings = Mutex::new(Settings::new(role));
        Self { role, settings, choose: Mutex::default(), built: Mutex::default() }
    }

    /// Which side of its sessions a context is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Reads the settings.
    pub fn read<T>(&self, read: impl FnOnce(&Settings) -> T) -> T {
        read(&self.settings())
    }

    /// Changes the settings for sessions that begin later.
    pub fn change<T>(&self, change: impl FnOnce(&mut Settings) -> T) -> T {
        let mut settings = self.settings();
        let changed = change(&mut settings);
        let old = self.built_now().take();
        drop(settings);
        drop(old); // unlocked, because it may run the code of what callbacks refer to
        changed
    }

    /// Lets a function choose the context of each session that begins later.
    pub fn choose_by_name(&self, choose: Option<Arc<ChooseContext>>) {
        let former = std::mem::replace(&mut *self.choose_now(), choose);
        self.change(|_| ());
        drop(former); // unlocked, as in `change`
    }

    /// OpenSSL's counters of sessions, by their names in the `ssl` module. They begin anew when a
    /// setting is changed.
    pub fn session_stats(&self) -> Result<Vec<(&'static str, i64)>, ContextError> {
        Ok(session_stats(&self.build()?.context))
    }

    fn choose_now(&self) -> MutexGuard<'_, Option<Arc<ChooseContext>>> {
        self.choose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn built_now(&self) -> MutexGuard<'_, Option<Arc<Built>>> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a server has a certificate or keys; without, every handshake would fail.
    pub fn has_identity(&self) -> bool {
        self.settings().has_identity()
    }

    /// Prepares for sessions, with the current settings.
    pub(super) fn build(&self) -> Result<Arc<Built>, ContextError> {
        let settings = self.settings();
        let mut built = self.built_now();
        if let Some(built) = &*built {
            return Ok(Arc::clone(built));
        }
        let mut builder = settings.builder(self.role)?;
        if let Some(choose) = self.choose_now().clone() {
            set_up_choice(&mut builder, choose);
        }
        let context = builder.build();
        let new = Arc::new(Built {
            context,
            settings: settings.clone(),
            role: self.role,
            resumable: Mutex::default(),
        });
        *built = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Prepares for sessions, so that processes which are forked later share what the context
    /// generates, such as the keys of tickets.
    pub fn prepare(&self) -> Result<(), ContextError> {
        self.build().map(drop)
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
        if let Some(session) = self.resumable().get(&(peer, server_name.map(ToOwned::to_owned))) {
            resume(&mut ssl, session)?;
        }
        Ok(ssl)
    }

    /// Keeps a complete session of a client, to resume it later.
    pub(super) fn keep(&self, peer: Address, server_name: Option<String>, ssl: &SslRef) {
        let mut resumable = self.resumable();
        let server = (peer, server_name);
        if let Some(session) = ssl.session()
            && (resumable.len() < MOST_RESUMABLE || resumable.contains_key(&server))
        {
            resumable.insert(server, session.to_owned());
        }
    }

    fn resumable(&self) -> MutexGuard<'_, HashMap<Server, SslSession>> {
        self.resumable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session; a client's is with the server of that name.
    pub(super) fn start(&self, server_name: Option<&str>) -> Result<Ssl, ContextError> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_mtu(self.settings.mtu as u32)?;
        if self.role == Role::Server {
            ssl.set_accept_state();
            return Ok(ssl);
        }
        ssl.set_connect_state();
        let Settings { verify, check_hostname, psk_client, .. } = &self.settings;
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
