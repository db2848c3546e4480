//! Which daemon checks what, where several share one database.
//!
//! PURE. Every daemon that is alive (its lease says so) is a member; every provider belongs to the member with the
//! highest number for the pair. Invariant: members that agree on who is alive agree on every provider, and who
//! comes or goes moves only its own share.

use uuid::Uuid;

use super::schedule::hash_of;

/// The members, as this daemon knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    me: Uuid,
    others: Vec<Uuid>,
}

impl Share {
    /// `members` may or may not name `me`: a daemon that works counts itself.
    pub fn new(me: Uuid, members: impl IntoIterator<Item = Uuid>) -> Self {
        let mut others: Vec<Uuid> = members.into_iter().filter(|member| *member != me).collect();
        others.sort_unstable();
        others.dedup();
        Self { me, others }
    }

    /// Whether this daemon checks this provider.
    pub fn owns(&self, provider: &str) -> bool {
        let mine = weight(self.me, provider);
        self.others.iter().all(|other| (weight(*other, provider), *other) < (mine, self.me))
    }

    /// Whether no other daemon is there.
    pub fn is_alone(&self) -> bool {
        self.others.is_empty()
    }
}

fn weight(member: Uuid, provider: &str) -> u64 {
    let (high, low) = member.as_u64_pair();
    hash_of(provider, high ^ low.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u128) -> Vec<Uuid> {
        (1..=count)
            .map(|n| Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
            .collect()
    }

    fn owner(members: &[Uuid], provider: &str) -> Vec<Uuid> {
        let owns = |me: &&Uuid| Share::new(**me, members.iter().copied()).owns(provider);
        members.iter().filter(owns).copied().collect()
    }

    #[test]
    fn everything_has_exactly_one_owner_and_shares_are_fair() {
        let members = members(4);
        let mut counts = [0; 4];
        for n in 0..4000 {
            let owners = owner(&members, &format!("provider-{n}"));
            assert_eq!(owners.len(), 1);
            counts[members.iter().position(|member| *member == owners[0]).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn who_leaves_moves_only_his_own_share() {
        let all = members(3);
        for n in 0..500 {
            let name = format!("provider-{n}");
            let before = owner(&all, &name)[0];
            let after = owner(&all[..2], &name)[0];
            assert!(before == after || before == all[2]);
        }
        assert!(Share::new(all[0], []).owns("anything"));
        assert!(Share::new(all[0], []).is_alone());
    }
}
