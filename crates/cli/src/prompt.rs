//! The only place that asks: yes or no, a name to type, a password without echo.
//!
//! What an answer means is decided by pure functions; without a terminal nothing is asked, and the verb refuses with
//! the flag that would have answered. Passwords come from the terminal, a file or stdin, never from an argument.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use collective_model::{Error, ErrorKind, IoResultExt as _, Result};
use zeroize::Zeroizing;

/// Bytes of a password file that are read, at most; so a wrong path is not read into memory.
const SECRET_BYTES: u64 = 4096;

/// Asks people, where there is a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    interactive: bool,
}

/// Where a secret is read from, instead of the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `-`: the first line of stdin.
    Stdin,
    /// The first line of a file.
    File(PathBuf),
}

impl SecretSource {
    /// Reads a `--…-file` argument.
    #[expect(clippy::unnecessary_wraps, reason = "clap wants a parser that could fail")]
    pub fn parse(text: &str) -> Result<Self> {
        Ok(if text == "-" { Self::Stdin } else { Self::File(text.into()) })
    }
}

impl Prompt {
    /// Makes the prompt of this process: it asks if both ends of the conversation are a terminal.
    pub fn new() -> Self {
        let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self { interactive }
    }

    /// Asks for a yes; `--yes` would have answered.
    pub fn confirm(self, question: &str) -> Result<()> {
        self.confirm_with(question, "add --yes to answer it")
    }

    /// Asks for a yes; `hint` says how to answer without a terminal.
    pub fn confirm_with(self, question: &str, hint: &str) -> Result<()> {
        if !self.interactive {
            return Err(nobody(question, hint));
        }
        let answer = ask(&format!("{question} [y/N] "))?;
        if is_yes(&answer) { Ok(()) } else { Err(refused()) }
    }

    /// Asks for the name of what will be lost, so that no habit of typing `y` loses it.
    pub fn confirm_name(self, question: &str, name: &str) -> Result<()> {
        if !self.interactive {
            return Err(nobody(question, "add --yes to answer it"));
        }
        let answer = ask(&format!("{question}\nType `{name}` to go on: "))?;
        if answer.trim() == name { Ok(()) } else { Err(refused()) }
    }

    /// Reads a secret from where the user said, or asks for it without echo.
    pub fn secret(self, source: Option<&SecretSource>, what: &str) -> Result<Zeroizing<String>> {
        self.secret_of_flag(source, what, &format!("--{what}-file"))
    }

    /// As [`Self::secret`], where the flag that gives it is not named as the secret is.
    pub fn secret_of_flag(
        self,
        source: Option<&SecretSource>,
        what: &str,
        flag: &str,
    ) -> Result<Zeroizing<String>> {
        match source {
            Some(SecretSource::Stdin) => first_line(std::io::stdin().lock(), "stdin", what),
            Some(SecretSource::File(path)) => {
                let shown = path.display().to_string();
                let file = std::fs::File::open(path)
                    .or_io(|| format!("cannot read the {what} from `{shown}`"))?;
                first_line(file, &format!("`{shown}`"), what)
            }
            None if !self.interactive => {
                Err(nobody(&format!("{what}:"), &format!("give it with {flag} FILE (`-`: stdin)")))
            }
            None => {
                unempty(read_hidden(&format!("{}: ", capitalised(what)))?, "the terminal", what)
            }
        }
    }

    /// As [`Self::secret`], for one that is new: typed twice.
    pub fn new_secret(
        self,
        source: Option<&SecretSource>,
        what: &str,
    ) -> Result<Zeroizing<String>> {
        let secret = self.secret(source, what)?;
        if source.is_none() && *read_hidden(&format!("{} again: ", capitalised(what)))? != *secret {
            return Err(Error::new(ErrorKind::Invalid, format!("the two {what}s differ")));
        }
        Ok(secret)
    }
}

fn ask(question: &str) -> Result<String> {
    let mut err = std::io::stderr().lock();
    let mut answer = String::new();
    write!(err, "{question}")
        .and_then(|()| err.flush())
        .and_then(|()| std::io::stdin().lock().take(SECRET_BYTES).read_line(&mut answer))
        .or_io(|| "cannot ask on the terminal".to_owned())?;
    Ok(answer)
}

fn read_hidden(label: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(label)
        .map(Zeroizing::new)
        .or_io(|| "cannot read from the terminal".to_owned())
}

fn first_line(from: impl std::io::Read, place: &str, what: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    from.take(SECRET_BYTES)
        .read_to_string(&mut text)
        .or_io(|| format!("cannot read the {what} from {place}"))?;
    unempty(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()), place, what)
}

fn unempty(secret: Zeroizing<String>, place: &str, what: &str) -> Result<Zeroizing<String>> {
    if secret.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, format!("the {what} from {place} is empty")));
    }
    Ok(secret)
}

fn nobody(question: &str, hint: &str) -> Error {
    let message = format!("there is no terminal on which to ask: {}", question.replace('\n', " "));
    Error::new(ErrorKind::Invalid, message).with_hint(hint)
}

fn refused() -> Error {
    Error::new(ErrorKind::Invalid, "not confirmed; nothing was changed")
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

fn capitalised(text: &str) -> String {
    let mut signs = text.chars();
    signs.next().map_or_else(String::new, |first| first.to_uppercase().chain(signs).collect())
}

#[cfg(test)]
mod tests {
    use collective_model::ErrorKind;

    use super::{Prompt, first_line, is_yes};

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(is_yes("y\n") && is_yes("Yes") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("no") && !is_yes("yep"));
    }

    #[test]
    fn without_a_terminal_a_question_names_the_flag_that_answers() {
        let error = Prompt { interactive: false }.confirm("Undo `debian`?").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("Undo `debian`?"), "{error}");
        assert_eq!(error.hint(), Some("add --yes to answer it"));
        let error = Prompt { interactive: false }.secret(None, "password").unwrap_err();
        assert_eq!(error.hint(), Some("give it with --password-file FILE (`-`: stdin)"));
    }

    #[test]
    fn a_secret_is_the_first_line_without_its_end() {
        assert_eq!(*first_line(&b"a b \nrest"[..], "stdin", "password").unwrap(), "a b ");
        let error = first_line(&b"\n"[..], "stdin", "password").unwrap_err();
        assert_eq!(error.to_string(), "the password from stdin is empty");
    }
}
