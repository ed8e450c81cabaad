//! What the server remembers of its checks, in words. Pure.

use collective_api::server::CheckStatus;
use collective_model::{ByteCount, Timestamp};

use crate::text;

/// Writes a check into a cell of a table.
pub fn cell(check: &CheckStatus, now: Timestamp) -> String {
    match (check.damaged, check.finished, check.under_way_bytes) {
        (1.., ..) => format!("{} damaged", check.damaged),
        (0, Some(finished), _) => text::ago(finished, now),
        (0, None, Some(_)) => "under way".to_owned(),
        (0, None, None) => "-".to_owned(),
    }
}

/// Writes all that is known of a check: a line, and one for each damage that is named.
pub fn lines(check: &CheckStatus, now: Timestamp) -> Vec<String> {
    let mut first = match check.finished {
        None => "never whole".to_owned(),
        Some(finished) => {
            let found = match check.damaged {
                0 => "all is well".to_owned(),
                damaged => format!("{damaged} damaged"),
            };
            let bytes = ByteCount(check.bytes);
            format!("{}, {bytes} read, {found}", text::ago(finished, now))
        }
    };
    if let Some(bytes) = check.under_way_bytes {
        first.push_str(&format!("; one is under way, {} read", ByteCount(bytes)));
    }
    let damages = check.damages.iter();
    let damages = damages.map(|it| format!("  {}: {}", it.object, text::plain(&it.what)));
    let further = check.damaged.saturating_sub(check.damages.len() as u64);
    let further = (further > 0).then(|| format!("  and {further} more"));
    [first].into_iter().chain(damages).chain(further).collect()
}

#[cfg(test)]
mod tests {
    use collective_api::server::{CheckStatus, DamagedObject};
    use collective_model::Timestamp;

    use super::{cell, lines};

    const NOW: Timestamp = Timestamp(90_000_000);

    fn well() -> CheckStatus {
        CheckStatus { finished: Some(Timestamp(0)), bytes: 2_000_000, ..CheckStatus::default() }
    }

    #[test]
    fn a_check_is_said_with_its_age_and_what_it_found() {
        let damages =
            vec![DamagedObject { object: "packs/ab".to_owned(), what: "it is cut".to_owned() }];
        let bad = CheckStatus { damaged: 3, damages, ..well() };
        let begun = CheckStatus { under_way_bytes: Some(7_000), ..CheckStatus::default() };
        let all = [CheckStatus::default(), begun, well(), bad];
        let said = all.map(|it| format!("{} | {}", cell(&it, NOW), lines(&it, NOW).join("\n")));
        insta::assert_snapshot!(said.join("\n"), @r"
        - | never whole
        under way | never whole; one is under way, 7.00 kB read
        1 d 1 h ago | 1 d 1 h ago, 2.00 MB read, all is well
        3 damaged | 1 d 1 h ago, 2.00 MB read, 3 damaged
          packs/ab: it is cut
          and 2 more
        ");
    }
}
