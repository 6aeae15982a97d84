//! Cookies, which prove that a client receives what is sent to its address (RFC 6347, section 4.2.1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::memcmp;
use openssl::rand::rand_bytes;
use openssl::sha::Sha256;

use super::hello::{COOKIE, ClientHello};
use crate::net::address::{Address, AddressKind};

/// How long a secret makes cookies. The cookies of the previous one are still accepted.
const ROTATION: Duration = Duration::from_secs(60);
/// The block length of SHA-256.
const BLOCK: usize = 64;

/// The origin of the secrets. Processes that are forked later share it: a client may get a cookie
/// from one worker of a server, and repeat it to the worker that has replaced that one.
pub(super) struct CookieRoot {
    hmac: Hmac,
    began: Instant,
}

impl CookieRoot {
    /// Fails if the system's random numbers are not available.
    pub(super) fn random(began: Instant) -> Result<Self, openssl::error::ErrorStack> {
        let mut key = [0; BLOCK];
        rand_bytes(&mut key)?;
        Ok(Self { hmac: Hmac::new(&key), began })
    }

    /// The number of the secret that makes cookies at a time.
    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / ROTATION.as_secs()
    }

    fn secret(&self, number: u64) -> Hmac {
        let mut key = [0; BLOCK];
        key[..COOKIE].copy_from_slice(&self.hmac.sign(&[&number.to_be_bytes()]));
        Hmac::new(&key)
    }
}

/// Makes and checks cookies. Nothing is stored for a client.
pub(super) struct Cookies {
    root: Arc<CookieRoot>,
    number: u64,
    current: Hmac,
    previous: Option<Hmac>,
}

impl Cookies {
    pub(super) fn new(root: Arc<CookieRoot>, now: Instant) -> Self {
        let number = root.number(now);
        let current = root.secret(number);
        let previous = number.checked_sub(1).map(|number| root.secret(number));
        Self { root, number, current, previous }
    }

    /// The cookie for a client, bound to its address and port and to what it asks for.
    pub(super) fn make(
        &mut self,
        peer: &Address,
        hello: &ClientHello<'_>,
        now: Instant,
    ) -> [u8; COOKIE] {
        self.rotate(now);
        self.current.cookie(peer, hello)
    }

    /// Whether a client repeats the cookie that it was given.
    pub(super) fn check(&mut self, peer: &Address, hello: &ClientHello<'_>, now: Instant) -> bool {
        if hello.cookie.len() != COOKIE {
            return false;
        }
        self.rotate(now);
        let is_of = |hmac: &Hmac| memcmp::eq(&hmac.cookie(peer, hello), hello.cookie);
        is_of(&self.current) || self.previous.as_ref().is_some_and(is_of)
    }

    fn rotate(&mut self, now: Instant) {
        if self.root.number(now) != self.number {
            *self = Self::new(Arc::clone(&self.root), now);
        }
    }
}

/// HMAC-SHA-256 (RFC 2104) with a secret key that is already hashed, so that it allocates nothing.
struct Hmac {
    inner: Sha256,
    outer: Sha256,
}

impl Hmac {
    fn new(key: &[u8; BLOCK]) -> Self {
        let hash = |pad: u8| {
            let mut hash = Sha256::new();
            hash.update(&key.map(|byte| byte ^ pad));
            hash
        };
        Self { inner: hash(0x36), outer: hash(0x5c) }
    }

    fn sign(&self, parts: &[&[u8]]) -> [u8; COOKIE] {
        let mut inner = self.inner.clone();
        for part in parts {
            inner.update(part);
        }
        let mut outer = self.outer.clone();
        outer.update(&inner.finish());
        outer.finish()
    }

    fn cookie(&self, peer: &Address, hello: &ClientHello<'_>) -> [u8; COOKIE] {
        match peer.kind() {
            // An IPv6 flow label may differ from one datagram to the next.
            AddressKind::V6(peer) => self.sign(&[
                &peer.ip().octets(),
                &peer.port().to_be_bytes(),
                &peer.scope_id().to_be_bytes(),
                hello.parameters,
            ]),
            _ => self.sign(&[peer.as_bytes(), hello.parameters]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::hello::FirstRecord;
    use super::super::hello::tests::client_hello;
    use super::*;

    fn cookies(now: Instant) -> Cookies {
        Cookies::new(Arc::new(CookieRoot::random(now).unwrap()), now)
    }

    fn address(text: &str) -> Address {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn check(cookies: &mut Cookies, peer: &Address, datagram: &[u8], now: Instant) -> bool {
        let FirstRecord::ClientHello(hello) = FirstRecord::parse(datagram) else { panic!() };
        cookies.check(peer, &hello, now)
    }

    fn make(cookies: &mut Cookies, peer: &Address, now: Instant) -> [u8; COOKIE] {
        let datagram = client_hello(0, 1, b"");
        let FirstRecord::ClientHello(hello) = FirstRecord::parse(&datagram) else { panic!() };
        cookies.make(peer, &hello, now)
    }

    #[test]
    fn a_cookie_belongs_to_one_address_port_and_attempt() {
        let now = Instant::now();
        for (peer, others) in [
            ("192.0.2.1:5", ["192.0.2.1:6", "192.0.2.2:5"]),
            ("[2001:db8::1]:5", ["[2001:db8::1]:6", "[2001:db8::2]:5"]),
        ] {
            let mut cookies = cookies(now);
            let cookie = make(&mut cookies, &address(peer), now);
            let datagram = client_hello(1, 1, &cookie);
            assert!(check(&mut cookies, &address(peer), &datagram, now));
            for other in others {
                assert!(!check(&mut cookies, &address(other), &datagram, now));
            }
            let of_another_attempt = client_hello(1, 2, &cookie);
            assert!(!check(&mut cookies, &address(peer), &of_another_attempt, now));
            assert!(!check(&mut self::cookies(now), &address(peer), &datagram, now));
        }
    }

    #[test]
    fn a_cookie_outlives_one_rotation_of_the_secret() {
        let (start, peer) = (Instant::now(), address("192.0.2.1:5"));
        let mut cookies = cookies(start);
        let datagram = client_hello(1, 1, &make(&mut cookies, &peer, start));
        assert!(check(&mut cookies, &peer, &datagram, start + ROTATION));
        assert!(!check(&mut cookies, &peer, &datagram, start + 2 * ROTATION));
    }

    #[test]
    fn a_cookie_is_invalid_after_a_long_pause() {
        let (start, peer) = (Instant::now(), address("192.0.2.1:5"));
        let mut cookies = cookies(start);
        let datagram = client_hello(1, 1, &make(&mut cookies, &peer, start));
        assert!(!check(&mut cookies, &peer, &datagram, start + 3 * ROTATION));
    }

    #[test]
    fn a_late_rotation_does_not_make_cookies_last_longer() {
        let (start, peer) = (Instant::now(), address("192.0.2.1:5"));
        let mut cookies = cookies(start);
        let datagram = client_hello(1, 1, &make(&mut cookies, &peer, start));
        assert!(check(&mut cookies, &peer, &datagram, start + ROTATION * 9 / 5));
        assert!(!check(&mut cookies, &peer, &datagram, start + 2 * ROTATION));
    }

    #[test]
    fn cookies_of_one_root_are_valid_whoever_makes_them() {
        let (start, peer) = (Instant::now(), address("192.0.2.1:5"));
        let root = Arc::new(CookieRoot::random(start).unwrap());
        let mut first = Cookies::new(Arc::clone(&root), start);
        let datagram = client_hello(1, 1, &make(&mut first, &peer, start));
        for (age, is_valid) in [(0, true), (59, true), (119, true), (120, false), (3600, false)] {
            let now = start + Duration::from_secs(age);
            let mut second = Cookies::new(Arc::clone(&root), now);
            assert_eq!(check(&mut second, &peer, &datagram, now), is_valid, "{age}");
        }
    }

    #[test]
    fn no_cookie_and_one_of_another_length_are_invalid() {
        let (now, peer) = (Instant::now(), address("192.0.2.1:5"));
        let mut cookies = cookies(now);
        let cookie = make(&mut cookies, &peer, now);
        for wrong in [&b""[..], &cookie[..31], &[&cookie[..], b"x"].concat(), &[0; COOKIE]] {
            assert!(!check(&mut cookies, &peer, &client_hello(1, 1, wrong), now));
        }
    }

    #[test]
    fn the_signature_is_that_of_hmac_sha_256() {
        use openssl::hash::MessageDigest;
        use openssl::pkey::PKey;
        use openssl::sign::Signer;
        let key = [3; BLOCK];
        let pkey = PKey::hmac(&key).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &pkey).unwrap();
        signer.update(b"some text").unwrap();
        let expected = signer.sign_to_vec().unwrap();
        assert_eq!(Hmac::new(&key).sign(&[b"some", b" text"])[..], expected);
    }
}
