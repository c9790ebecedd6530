//! How many partitions a streamer leads, and which. No process assigns them: each streamer looks at the locks of all, and
//! decides alone.
//!
//! - Streamers that work on all partitions are *members*. Of N partitions each of m members leads at most ⌈N / m⌉. It gives back
//!   what it has beyond that, and asks for free ones until it has as many. Since m times ⌈N / m⌉ is at least N, none is left over.
//! - A streamer with `--partitions` *claims* those that it names. Members leave claimed partitions to it, and divide the others.
//! - A streamer that reaches no node of Redis is no member and claims nothing. It leads only while there is no member at all.

use std::collections::BTreeSet;

use pglog::Partition;

/// The partitions that a streamer is to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub partitions: Vec<Partition>,
    /// Whether they were named, so that they are not shared.
    pub is_pinned: bool,
}

/// The locks of all streamers, as one of them sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Locks {
    /// The partitions that this streamer leads.
    pub own: BTreeSet<Partition>,
    /// Those that others lead.
    pub of_others: BTreeSet<Partition>,
    /// Those that others claim.
    pub claimed: BTreeSet<Partition>,
    /// The members, this streamer included if it is one.
    pub member_count: usize,
    /// Whether this streamer is a member, or has claimed its partitions.
    pub is_inside: bool,
}

/// The next changes of a streamer's share.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Led, and to be given back.
    pub give_back: BTreeSet<Partition>,
    /// Free, as far as known.
    pub ask_for: Vec<Partition>,
    /// How many of these it may take.
    pub take_count: usize,
}

/// The changes that bring the streamer to its share of a log with so many partitions.
pub(crate) fn decide(wanted: &Wanted, partition_count: usize, locks: &Locks) -> Change {
    let may_lead = |partition: &Partition| match (locks.is_inside, wanted.is_pinned) {
        (true, true) => true,
        (true, false) => !locks.claimed.contains(partition),
        (false, _) => locks.member_count == 0 && !locks.claimed.contains(partition),
    };
    let allowed: Vec<Partition> = wanted.partitions.iter().copied().filter(may_lead).collect();
    let share = if locks.is_inside && !wanted.is_pinned {
        partition_count.saturating_sub(locks.claimed.len()).div_ceil(locks.member_count.max(1))
    } else {
        allowed.len()
    };
    let kept: BTreeSet<Partition> =
        allowed.iter().copied().filter(|partition| locks.own.contains(partition)).take(share).collect();
    let is_free = |partition: &Partition| !locks.own.contains(partition) && !locks.of_others.contains(partition);
    Change {
        give_back: locks.own.difference(&kept).copied().collect(),
        take_count: share - kept.len(),
        ask_for: if kept.len() < share { allowed.into_iter().filter(is_free).collect() } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 8;

    fn some(numbers: impl IntoIterator<Item = i32>) -> Vec<Partition> {
        numbers.into_iter().map(|number| Partition::new(number).unwrap()).collect()
    }

    /// A streamer of a test: what it wants, whether it reaches Redis, and what it leads.
    struct Streamer {
        wanted: Wanted,
        is_inside: bool,
        led: BTreeSet<Partition>,
    }

    impl Streamer {
        fn of_all(is_inside: bool) -> Self {
            let wanted = Wanted { partitions: some(0..COUNT as i32), is_pinned: false };
            Self { wanted, is_inside, led: BTreeSet::new() }
        }

        fn pinned(numbers: &[i32], is_inside: bool) -> Self {
            let wanted = Wanted { partitions: some(numbers.iter().copied()), is_pinned: true };
            Self { wanted, is_inside, led: BTreeSet::new() }
        }
    }

    /// Each streamer looks a few times, one after another, as they do twice a second. Returns how many partitions each leads.
    fn settle(streamers: &mut [Streamer]) -> Vec<usize> {
        for _ in 0..3 {
            for index in 0..streamers.len() {
                let (own, others): (Vec<_>, Vec<_>) =
                    streamers.iter().enumerate().partition(|(other, _)| *other == index);
                let claims = others.iter().filter(|(_, other)| other.is_inside && other.wanted.is_pinned);
                let locks = Locks {
                    own: own[0].1.led.clone(),
                    of_others: others.iter().flat_map(|(_, other)| other.led.clone()).collect(),
                    claimed: claims.flat_map(|(_, other)| other.wanted.partitions.clone()).collect(),
                    member_count: streamers.iter().filter(|one| one.is_inside && !one.wanted.is_pinned).count(),
                    is_inside: own[0].1.is_inside,
                };
                let change = decide(&own[0].1.wanted, COUNT, &locks);
                let led = &mut streamers[index].led;
                led.retain(|partition| !change.give_back.contains(partition));
                led.extend(change.ask_for.into_iter().take(change.take_count));
            }
        }
        streamers.iter().map(|streamer| streamer.led.len()).collect()
    }

    #[test]
    fn members_share_the_partitions_and_each_is_led_once() {
        let mut streamers = vec![Streamer::of_all(true)];
        assert_eq!(settle(&mut streamers), [8]);
        streamers.push(Streamer::of_all(true));
        assert_eq!(settle(&mut streamers), [4, 4]);
        streamers.push(Streamer::of_all(true));
        assert_eq!(settle(&mut streamers), [3, 3, 2]);
        streamers.remove(0);
        assert_eq!(settle(&mut streamers), [4, 4], "those of a streamer that is gone are led again");
        let many: Vec<Streamer> = (0..20).map(|_| Streamer::of_all(true)).collect();
        streamers.extend(many);
        assert_eq!(settle(&mut streamers).iter().sum::<usize>(), 8, "more streamers than partitions");
    }

    #[test]
    fn pinned_partitions_are_left_to_the_streamer_that_names_them() {
        let mut streamers = vec![Streamer::of_all(true), Streamer::of_all(true)];
        settle(&mut streamers);
        streamers.push(Streamer::pinned(&[0, 3], true));
        assert_eq!(settle(&mut streamers), [3, 3, 2]);
        assert!(streamers[2].led.iter().copied().eq(some([0, 3])));
        streamers.push(Streamer::pinned(&[3, 5], true));
        assert_eq!(settle(&mut streamers).iter().sum::<usize>(), 8, "two that name the same one");
        streamers.truncate(2);
        assert_eq!(settle(&mut streamers), [4, 4]);
    }

    /// P2: without Redis too, each partition is led that a living streamer works on.
    #[test]
    fn a_streamer_without_redis_leads_only_while_there_is_no_member() {
        let mut streamers = vec![Streamer::of_all(false), Streamer::of_all(false)];
        assert_eq!(settle(&mut streamers), [8, 0]);
        streamers[1].is_inside = true;
        assert_eq!(settle(&mut streamers), [0, 8]);
        streamers[0].is_inside = true;
        assert_eq!(settle(&mut streamers), [4, 4]);
        streamers[1].is_inside = false;
        assert_eq!(settle(&mut streamers), [8, 0]);
        // A pinned streamer without Redis does not keep its partitions from the others.
        streamers.push(Streamer::pinned(&[0, 3], false));
        assert_eq!(settle(&mut streamers), [8, 0, 0]);
        streamers[2].is_inside = true;
        assert_eq!(settle(&mut streamers), [6, 0, 2]);
        streamers[0].is_inside = false;
        assert_eq!(settle(&mut streamers).iter().sum::<usize>(), 8, "the rest is led by a streamer without Redis");
    }
}
