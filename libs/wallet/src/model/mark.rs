//! The mark: one key in Redis that says of which build the documents are, and up to which place in each partition of
//! the log they are certain.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use pglog::Partition;

/// One build of the read model, as 32 hexadecimal digits: the runs of Redis and of Postgres that it is for, and a random number.
/// Documents of another epoch are not there for readers, and in another run of Redis no document is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u128);

impl Epoch {
    /// A new one for every run of both servers.
    pub fn random() -> Self {
        Self(u128::from(rand::random::<u64>()))
    }

    /// A new one for these runs alone.
    pub fn in_runs(redis: Run, postgres: Run) -> Self {
        Self(u128::from(redis.0) << 96 | u128::from(postgres.0) << 64 | Self::random().0)
    }

    /// Whether its documents can be believed in this run of Redis.
    pub fn is_for(self, redis: Run) -> bool {
        redis.is((self.0 >> 96) as u32)
    }

    /// Whether its documents were read in this run of Postgres.
    pub fn is_from(self, postgres: Run) -> bool {
        postgres.is((self.0 >> 64) as u32)
    }
}

/// One life of a server. After a restart Redis may have lost its newest writes, and an older document is shown over a newer
/// one. A Postgres that was put back, or a standby that was promoted, may lack events that documents show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run(u32);

impl Run {
    /// That of Redis, out of the reply to `INFO server`: the beginning of the `run_id` that it draws when it starts.
    pub fn of_info(info: &str) -> Option<Self> {
        let id = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
        u32::from_str_radix(id.get(..8)?, 16).ok().map(Self)
    }

    /// That of Postgres, out of `pg_postmaster_start_time()` in microseconds.
    pub fn of_start(start_us: i64) -> Self {
        Self(start_us as u32)
    }

    /// Whether the part of an epoch is this run; 0 is every run.
    fn is(self, part: u32) -> bool {
        part == 0 || part == self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

/// The text is not of this form: another program has written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign;

impl FromStr for Epoch {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let epoch = u128::from_str_radix(text, 16).map(Self).map_err(|_| Foreign)?;
        // Leading zeros, capitals and signs: the script compares texts.
        if epoch.to_string() == text { Ok(epoch) } else { Err(Foreign) }
    }
}

/// The mark: the build, and a place in each partition of the log, in their order. The documents reflect all records up to there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The build.
    pub epoch: Epoch,
    places: Arc<[Marked]>,
}

/// A place in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// The documents reflect all records up to this offset.
    pub offset: i64,
    /// The token of the log's batch that has this offset.
    pub token: i64,
}

impl Mark {
    /// A mark with a place in each partition, the first one first.
    ///
    /// # Panics
    /// There is none.
    pub fn new(epoch: Epoch, places: impl IntoIterator<Item = Marked>) -> Self {
        let places: Arc<[Marked]> = places.into_iter().collect();
        assert!(!places.is_empty(), "a log has a partition");
        Self { epoch, places }
    }

    /// The place in a partition. `None`: the mark is of a log with fewer partitions.
    pub fn place(&self, partition: Partition) -> Option<Marked> {
        self.places.get(usize::try_from(partition.number()).ok()?).copied()
    }

    /// The records that the documents reflect: the sum of all offsets, which is the offset if there is one partition.
    pub fn offset(&self) -> i64 {
        self.places.iter().map(|place| place.offset).sum()
    }

    /// Whether it is behind another mark of the same epoch in any partition. Within an epoch no place goes back, unless Redis has
    /// lost its newest writes.
    pub fn is_behind(&self, other: &Self) -> bool {
        self.epoch == other.epoch
            && self.places.iter().zip(&*other.places).any(|(own, other)| own.offset < other.offset)
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, r#""offset":{},"token":{}"#, self.offset, self.token)
    }
}

/// With one partition: `{"epoch":"…","offset":7,"token":-3}`. With more: `{"epoch":"…","partitions":[{"offset":7,"token":-3},…]}`.
/// The script writes the same.
impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = self.epoch;
        match &*self.places {
            [place] => write!(out, r#"{{"epoch":"{epoch}",{place}}}"#),
            places => {
                let places: Vec<String> = places.iter().map(|place| format!("{{{place}}}")).collect();
                write!(out, r#"{{"epoch":"{epoch}","partitions":[{}]}}"#, places.join(","))
            }
        }
    }
}

impl FromStr for Marked {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let (offset, token) =
            text.strip_prefix(r#""offset":"#).and_then(|rest| rest.split_once(r#","token":"#)).ok_or(Foreign)?;
        let number = |text: &str| text.parse().map_err(|_| Foreign);
        Ok(Self { offset: number(offset)?, token: number(token)? })
    }
}

impl FromStr for Mark {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let read = || {
            let (epoch, rest) = text.strip_prefix(r#"{"epoch":""#)?.split_once(r#"","#)?;
            let rest = rest.strip_suffix('}')?;
            let places: Vec<&str> = match rest.strip_prefix(r#""partitions":[{"#) {
                Some(rest) => rest.strip_suffix("}]")?.split("},{").collect(),
                None => vec![rest],
            };
            let places: Option<Arc<[Marked]>> = places.into_iter().map(|place| place.parse().ok()).collect();
            Some(Self { epoch: epoch.parse().ok()?, places: places? })
        };
        // The script compares texts.
        read().filter(|mark| mark.to_string() == text).ok_or(Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_for_the_runs_that_it_was_made_in() {
        let run = |id: &str| Run::of_info(&format!("# Server\r\nrun_id:{id}\r\nuptime:1\r\n"));
        let (one, two) = (run("0a0b0c0d99").unwrap(), run("ffffffff99").unwrap());
        assert_eq!((run(""), run("0a0b0c0"), run("0a0b0c0é"), Run::of_info("")), (None, None, None, None));
        for run in [one, two] {
            let epoch = Epoch::in_runs(run, Run::of_start(7));
            assert_eq!(epoch.to_string().parse(), Ok(epoch));
            assert_eq!((epoch.is_for(one), epoch.is_for(two)), (run == one, run == two));
            assert!(epoch.is_from(Run::of_start(7)) && !epoch.is_from(Run::of_start(8)));
        }
        let random = Epoch::random();
        assert!(random.is_for(one) && random.is_for(two) && random.is_from(Run::of_start(7)));
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_no_other_text_is_one() {
        let mark = Mark::new(Epoch(0xab), [Marked { offset: 7, token: -3 }]);
        let text = r#"{"epoch":"000000000000000000000000000000ab","offset":7,"token":-3}"#;
        assert_eq!(mark.to_string(), text);
        assert_eq!(text.parse(), Ok(mark));
        for bad in ["", "{}", &text.replace('b', "B"), &text.replace("00ab", "ab"), &text.replace('7', ""), &text[1..]]
        {
            assert_eq!(bad.parse::<Mark>(), Err(Foreign), "{bad}");
        }
    }

    #[test]
    fn a_mark_of_several_partitions_has_a_place_in_each() {
        let mark = Mark::new(Epoch(0xab), [(7, -3), (0, 0)].map(|(offset, token)| Marked { offset, token }));
        let text = r#"{"epoch":"000000000000000000000000000000ab","partitions":[{"offset":7,"token":-3},{"offset":0,"token":0}]}"#;
        assert_eq!((mark.to_string().as_str(), text.parse()), (text, Ok(mark.clone())));
        assert_eq!(mark.place(Partition::new(1).unwrap()), Some(Marked { offset: 0, token: 0 }));
        assert_eq!((mark.place(Partition::new(2).unwrap()), mark.offset()), (None, 7));
        for bad in
            [&text.replace("},{", "}{"), &text.replace("]", ""), &text.replace("7", "07"), &text.replace("[{", "[")]
        {
            assert_eq!(bad.parse::<Mark>(), Err(Foreign), "{bad}");
        }
        let on = |first, second| Mark::new(Epoch(0xab), [first, second].map(|offset| Marked { offset, token: 1 }));
        assert!(on(7, 1).is_behind(&on(6, 2)) && !on(7, 2).is_behind(&on(7, 1)), "each place for itself");
    }
}
