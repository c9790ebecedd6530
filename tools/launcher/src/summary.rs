//! The summary line: SQL's sum, and each consumer's total and lag.

use std::fmt::Write;

use crate::totals::{ConsumerTotal, Totals};

/// `sql 9 rides 45.006 m | consumer0 45.006 m, lag 0 | consumer1 40.001 m, lag 1 | duplicates skipped 4, …`
pub(crate) fn line(totals: &Totals) -> String {
    let sql = totals.sql;
    let mut line = format!("sql {} rides {}", sql.ride_count, metres(sql.total_distance_mm));
    for consumer in &totals.consumers {
        // Writing to a String cannot fail.
        let _ = write!(line, " | {} {}, lag {}", consumer.name, metres(consumer.total_distance_mm), consumer.lag);
    }
    let sum = |count: fn(&ConsumerTotal) -> i64| totals.consumers.iter().map(count).sum::<i64>();
    let _ = write!(
        line,
        " | duplicates skipped {}, gaps healed {}, crashes survived {}",
        sum(|c| c.duplicate_count),
        sum(|c| c.healed_count),
        sum(|c| c.crash_count)
    );
    match sum(|c| c.dead_letter_count) {
        0 => {}
        dead_letter_count => {
            let _ = write!(line, ", dead letters {dead_letter_count}");
        }
    }
    line + if totals.converged { " | CONVERGED" } else { "" }
}

fn metres(millimetres: i64) -> String {
    format!("{}.{:03} m", millimetres / 1000, millimetres % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::Sum;

    fn consumer(name: &str, ride_count: i64, total_distance_mm: i64, lag: i64) -> ConsumerTotal {
        ConsumerTotal {
            name: name.into(),
            missing_partitions: Vec::new(),
            ride_count,
            total_distance_mm,
            last_offset: 9 - lag,
            lag,
            duplicate_count: 2,
            healed_count: 0,
            crash_count: 1,
            dead_letter_count: 0,
        }
    }

    #[test]
    fn the_line_shows_who_is_behind() {
        let totals = Totals {
            sql: Sum { ride_count: 9, total_distance_mm: 45_006 },
            head: 9,
            consumers: vec![consumer("consumer0", 9, 45_006, 0), consumer("consumer1", 8, 40_001, 1)],
            converged: false,
        };
        assert_eq!(
            line(&totals),
            "sql 9 rides 45.006 m | consumer0 45.006 m, lag 0 | consumer1 40.001 m, lag 1 | \
             duplicates skipped 4, gaps healed 0, crashes survived 2"
        );
    }
}
