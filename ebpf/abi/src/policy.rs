//! L4 policy: key, precedence. The same functions decide in the kernel and in the property tests of user space.

/// Any peer, in [`PolicyKey::peer`].
pub const ANY_IDENTITY: u32 = u32::MAX;

/// What an entry says.
pub mod action {
    /// No entry (a deleted one, or one that is not there yet under this generation).
    pub const ABSENT: u8 = 0;
    /// Let the connection go on directly.
    pub const ALLOW: u8 = 1;
    /// Let it go on through the proxy, which decides per request.
    pub const REDIRECT: u8 = 2;
    /// EPERM.
    pub const DENY: u8 = 3;
    /// Let it go on and report that it would have been denied. Only ever the action of a default.
    pub const AUDIT: u8 = 4;
}

/// Direction of the initiator, seen from the subject, and which numbers subject and peer are.
pub mod direction {
    /// Access, by identity: the peer connects to the subject.
    pub const INGRESS: u8 = 0;
    /// Access, by identity: the subject connects to the peer.
    pub const EGRESS: u8 = 1;
    /// Network policy, by class: the peer connects to the subject.
    pub const NET_INGRESS: u8 = 2;
    /// Network policy, by class: the subject connects to the peer.
    pub const NET_EGRESS: u8 = 3;
}

/// `weft_policy` key: a plain HASH, one look-up for each port prefix length in use and each of {peer, any}.
///
/// Why not an LPM trie: its look-up walks a node a bit level and its updates copy paths; with 100,000 entries it is
/// several times slower than a hash (and slow to free), while rule sets use a handful of prefix lengths.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    /// Whom the rule is about (ingress: the destination): an identity, or under the network directions a class.
    pub subject: u32,
    /// The other side, or [`ANY_IDENTITY`].
    pub peer: u32,
    /// First bits of the port, host order, the rest zero: [`mask_port`].
    pub port: u16,
    /// How many bits of the port count (0 = every port, 16 = exactly this one).
    pub prefix: u8,
    /// [`crate::protocol`], or 0 for the subject's default.
    pub protocol: u8,
    /// [`direction`].
    pub direction: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 3],
}

/// `weft_policy` value (under [`crate::Versioned`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyValue {
    /// Rule number, for events and counters.
    pub rule: u32,
    /// [`rank`] of the entry, computed when it is written: of all entries that match, the highest wins.
    pub rank: u32,
}

impl PolicyValue {
    /// What an entry of this key says.
    #[inline(always)]
    pub const fn new(rule: u32, action: u8, prefix: u8, exact: bool) -> Self {
        Self {
            rule,
            rank: rank(action, prefix, exact),
        }
    }

    /// [`action`] of the entry.
    #[inline(always)]
    pub const fn action(&self) -> u8 {
        (self.rank >> 16) as u8
    }
}

/// Precedence as a number: deny, then redirect, then the longer port prefix, then exact identity over any.
///
/// Stored rather than compared field by field: the verifier follows constants through comparisons, and seventeen prefix
/// lengths times two peers of them make more states than it looks at.
#[inline(always)]
pub const fn rank(action: u8, prefix: u8, exact: bool) -> u32 {
    (action as u32) << 16 | (prefix as u32) << 8 | exact as u32
}

/// The first `prefix` bits of `port` (both host order).
#[inline(always)]
pub const fn mask_port(port: u16, prefix: u8) -> u16 {
    if prefix >= 16 {
        return port;
    }
    let mask = 0xffff_0000u32 >> prefix;
    port & (mask as u16)
}

const _: () = assert!(size_of::<PolicyKey>() == 16);
const _: () = assert!(size_of::<PolicyValue>() == 8);
const _: () =
    assert!(action::DENY > action::REDIRECT && action::REDIRECT > action::ALLOW && action::ALLOW > action::ABSENT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_masked_to_their_prefix() {
        assert_eq!(mask_port(0xffff, 0), 0);
        assert_eq!(mask_port(0x1f90, 16), 0x1f90);
        assert_eq!(mask_port(0x1f93, 14), 0x1f90);
        assert_eq!(mask_port(0xffff, 1), 0x8000);
    }

    #[test]
    fn deny_beats_longer_prefix_and_exact_identity() {
        assert!(rank(action::DENY, 0, false) > rank(action::ALLOW, 16, true));
        assert!(rank(action::REDIRECT, 0, false) > rank(action::ALLOW, 16, true));
        assert!(rank(action::ALLOW, 16, false) > rank(action::ALLOW, 0, true));
        assert!(rank(action::ALLOW, 16, true) > rank(action::ALLOW, 16, false));
        assert_eq!(PolicyValue::new(7, action::DENY, 16, true).action(), action::DENY);
    }
}
