//! Which addresses may be reached at all.
//!
//! PURE. Judged are addresses, after names were resolved, so that no name leads where its address may not.
//! Invariant: link-local and cloud-metadata addresses are refused in every notation, whatever the settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the operator allows. Metadata and link-local addresses are never allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Private and unique-local ranges, and shared address space: a model server in the same network.
    pub allow_private: bool,
    /// This machine: a local Ollama.
    pub allow_loopback: bool,
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self { allow_private: true, allow_loopback: true }
    }
}

/// Why an address may not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefusal {
    #[error("{0} is a cloud metadata service")]
    Metadata(IpAddr),
    #[error("{0} is link-local")]
    LinkLocal(IpAddr),
    #[error("{0} is not an address of one host")]
    NotAHost(IpAddr),
    #[error("{0} is a private address\nhint: the egress settings refuse those")]
    Private(IpAddr),
    #[error("{0} is this machine\nhint: the egress settings refuse loopback addresses")]
    Loopback(IpAddr),
}

/// Metadata services outside the link-local ranges: Alibaba, Azure's wire server, Oracle's classic one, AWS on IPv6.
const METADATA_V4: &[Ipv4Addr] =
    &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// AWS, its pods' identities (EKS), Google.
const METADATA_V6: &[Ipv6Addr] = &[
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
/// Names that lead to a metadata service inside a cloud, and nowhere outside.
const METADATA_NAMES: &[&str] =
    &["metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"];

/// Whether a host's name is that of a cloud metadata service: such a name is refused unresolved, because a proxy may resolve
/// what this machine cannot.
pub fn is_metadata_name(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    METADATA_NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

impl EgressPolicy {
    /// Whether this address may be connected to.
    pub fn check(self, address: IpAddr) -> Result<(), EgressRefusal> {
        match address {
            IpAddr::V4(v4) => self.check_v4(v4, address),
            IpAddr::V6(v6) => match embedded_v4(v6) {
                // Another notation of an IPv4 address is that address.
                Some(v4) => self.check_v4(v4, address),
                None => self.check_v6(v6, address),
            },
        }
    }

    fn check_v4(self, v4: Ipv4Addr, shown: IpAddr) -> Result<(), EgressRefusal> {
        let [a, b, c, _] = v4.octets();
        if METADATA_V4.contains(&v4) || v4 == Ipv4Addr::new(169, 254, 169, 254) {
            return Err(EgressRefusal::Metadata(shown));
        }
        if v4.is_link_local() {
            return Err(EgressRefusal::LinkLocal(shown));
        }
        // `0.0.0.0` reaches this machine on many systems, and says so nowhere.
        if a == 0 || a >= 224 {
            return Err(EgressRefusal::NotAHost(shown));
        }
        if v4.is_loopback() {
            return if self.allow_loopback { Ok(()) } else { Err(EgressRefusal::Loopback(shown)) };
        }
        let shared = a == 100 && (64..128).contains(&b);
        let special = (a, b, c) == (192, 0, 0) || a == 198 && (b == 18 || b == 19);
        if (v4.is_private() || shared || special) && !self.allow_private {
            return Err(EgressRefusal::Private(shown));
        }
        Ok(())
    }

    fn check_v6(self, v6: Ipv6Addr, shown: IpAddr) -> Result<(), EgressRefusal> {
        let first = v6.segments()[0];
        if METADATA_V6.contains(&v6) {
            return Err(EgressRefusal::Metadata(shown));
        }
        if first & 0xffc0 == 0xfe80 {
            return Err(EgressRefusal::LinkLocal(shown));
        }
        if v6.is_unspecified() || v6.is_multicast() {
            return Err(EgressRefusal::NotAHost(shown));
        }
        if v6.is_loopback() {
            return if self.allow_loopback { Ok(()) } else { Err(EgressRefusal::Loopback(shown)) };
        }
        // Unique-local, and the site-local range that came before it.
        if (first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0) && !self.allow_private {
            return Err(EgressRefusal::Private(shown));
        }
        Ok(())
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible, NAT64 (well-known and local), 6to4, Teredo, ISATAP.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let join = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(join(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(join(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x64, 0xff9b, 1, _, _, _, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        // Teredo writes the client's address inverted.
        [0x2001, 0, .., high, low] => Some(join(!high, !low)),
        [.., 0 | 0x200, 0x5efe, high, low] => Some(join(high, low)),
        // `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(join(high, low)),
        _ => None,
    }
}
