//! Whether the connection is paid for by what it carries: then nothing is fetched before somebody asks for it.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long NetworkManager may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Its property `Metered`, an `NMMetered` (NetworkManager's D-Bus reference).
const QUESTION: [&str; 6] = [
    "--system",
    "get-property",
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
];

/// What is known of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metered {
    /// It is as NetworkManager says; where there is none, it is not metered.
    #[default]
    Ask,
    /// It is metered.
    Yes,
    /// It is not.
    No,
}

/// The connection as it was when it was last looked at.
#[derive(Debug)]
pub(crate) struct Connection {
    known: Metered,
    is_metered: AtomicBool,
}

impl Connection {
    pub(crate) fn new(known: Metered) -> Self {
        Self { known, is_metered: AtomicBool::new(known == Metered::Yes) }
    }

    pub(crate) fn is_metered(&self) -> bool {
        self.is_metered.load(Ordering::Relaxed)
    }

    /// Asks anew; what cannot be asked is not metered.
    pub(crate) async fn look(&self) {
        if self.known == Metered::Ask {
            let is_metered = ask("busctl").await.is_some_and(|said| says_metered(&said));
            self.is_metered.store(is_metered, Ordering::Relaxed);
        }
    }
}

async fn ask(program: &str) -> Option<String> {
    let mut question = tokio::process::Command::new(program);
    question.args(QUESTION).stdin(Stdio::null()).kill_on_drop(true);
    let answer = tokio::time::timeout(ANSWER_LIMIT, question.output()).await.ok()?.ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// Reads the property as `busctl` writes it: 1 is yes, 3 is yes by a guess.
fn says_metered(said: &str) -> bool {
    matches!(said.trim(), "u 1" | "u 3")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{Connection, Metered, ask, says_metered};

    #[test]
    fn networkmanagers_word_is_understood() {
        // Unknown, yes, no, yes by a guess, no by a guess; and what is no answer.
        let said = ["u 0\n", "u 1\n", "u 2\n", "u 3\n", "u 4\n", "", "Unknown property"];
        assert_eq!(said.map(says_metered), [false, true, false, true, false, false, false]);
    }

    #[tokio::test]
    async fn what_is_set_is_not_asked_for() {
        for (known, is_metered) in [(Metered::Yes, true), (Metered::No, false)] {
            let connection = Connection::new(known);
            connection.look().await;
            assert_eq!(connection.is_metered(), is_metered);
        }
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_fails_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let program = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let says = program("says", "#!/bin/sh\necho \"$2 ${6}:\"; echo u 1\n");
        assert_eq!(ask(&says).await.unwrap(), "get-property Metered:\nu 1\n");
        assert_eq!(ask(&program("fails", "#!/bin/sh\necho u 1; exit 1\n")).await, None);
        assert_eq!(ask("/nowhere/busctl").await, None);
    }
}
