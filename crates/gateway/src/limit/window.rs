//! The windows of budgets: days, weeks and months of UTC.

use crate::picture::BudgetPeriod;

/// One window of a budget, in Unix seconds: from `start` until before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetWindow {
    pub start: i64,
    pub end: i64,
}

/// Seconds.
pub(super) const DAY: i64 = 86_400;

impl BudgetWindow {
    /// The window that `now` (Unix seconds) lies in; UTC, weeks from Monday.
    pub fn of(period: BudgetPeriod, now: i64) -> Self {
        // Beyond the years that a calendar here has to know, arithmetic must still not overflow.
        let day = now.clamp(-LATEST, LATEST).div_euclid(DAY);
        let (start, end) = match period {
            BudgetPeriod::Day => (day, day + 1),
            BudgetPeriod::Week => {
                // The first of January 1970 was a Thursday.
                let monday = day - (day + 3).rem_euclid(7);
                (monday, monday + 7)
            }
            BudgetPeriod::Month => {
                let (year, month) = month_of(day);
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_of(year, month), first_of(next.0, next.1))
            }
        };
        Self { start: start * DAY, end: end * DAY }
    }
}

/// The end of the year 9999, in Unix seconds.
const LATEST: i64 = 253_402_300_799;

/// Year and month of a day since 1970, in the proleptic Gregorian calendar: years are counted from March, so that the
/// leap day is the last one, and in eras of 400 years, which all have equally many days.
const fn month_of(day: i64) -> (i64, i64) {
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + (month <= 2) as i64, month)
}

/// The first day of a month, in days since 1970.
const fn first_of(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}
