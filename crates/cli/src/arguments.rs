//! What may be typed: the tree of verbs, with what holds for all of them, and how a wrong word is told.
//!
//! The help of `collective` itself lists the verbs by what they are for ([`CHAPTERS`]). A mistake in the arguments is
//! an `Invalid` error like any other, so that it is printed like any other.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind as Mistake};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use collective_model::{Error, ErrorKind, Result, UserName};

use crate::context::ServerSocket;
use crate::verbs::Verb;

/// A compute utility of virtual appliances
#[derive(Parser, Debug)]
#[command(
    name = "collective",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Example:\n  collective login ann && collective start debian\n\n\
        `collective help VERB` has the details and an example of each verb; `collective help exit-codes`\n\
        says what a script can tell from the exit code."
)]
pub struct Command {
    #[command(flatten)]
    pub everywhere: Everywhere,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Everywhere {
    /// Write one JSON object a line, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Socket of the host daemon
    #[arg(
        long = "host",
        global = true,
        value_name = "SOCKET",
        env = "COLLECTIVE_HOST",
        hide_env_values = true
    )]
    pub host_socket: Option<PathBuf>,
    /// The same as behind the names of the groups, which show it: it may stand before them too.
    #[arg(long, global = true, hide = true, value_name = "unix:DIR/admin.sock")]
    pub server: Option<ServerSocket>,
    /// Whose session to use, where several people are logged in
    #[arg(
        long = "as",
        global = true,
        value_name = "USER",
        env = "COLLECTIVE_USER",
        hide_env_values = true
    )]
    pub as_user: Option<UserName>,
}

/// The verbs by what they are for, as the help lists them.
const CHAPTERS: [(&str, &[&str]); 4] = [
    (
        "Appliances",
        &[
            "list", "status", "start", "stop", "restart", "exec", "undo", "versions", "publish",
            "hold", "reset", "delete",
        ],
    ),
    ("This computer", &["login", "logout", "join", "doctor", "cache"]),
    ("Administration", &["appliance", "user", "group", "grant", "token", "audit"]),
    ("Daemons and the rest", &["host", "serve", "completion", "exit-codes", "help"]),
];

/// What came of reading the arguments.
pub enum Parsed {
    /// A verb to run.
    Command(Box<Command>),
    /// A text that was asked for: help or the release.
    Text(String),
    /// The help that is shown because the verb is missing.
    VerbMissing(String),
}

/// Returns the tree of verbs, with its help.
pub fn tree() -> clap::Command {
    let mut command = Command::command();
    command.build();
    let mut verbs = String::new();
    for (chapter, names) in CHAPTERS {
        verbs.push_str(&format!("{chapter}:\n"));
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
                .map(StyledStr::to_string)
                .unwrap_or_default();
            verbs.push_str(&format!("  {name:<12}{about}\n"));
        }
        verbs.push('\n');
    }
    Command::command().help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{verbs}{{options}}{{after-help}}"
    ))
}

/// Reads the arguments.
pub fn parse(words: &[OsString]) -> Result<Parsed> {
    let parsed =
        tree().try_get_matches_from(words).and_then(|matches| Command::from_arg_matches(&matches));
    match parsed {
        Ok(command) => Ok(Parsed::Command(Box::new(command))),
        Err(told) if matches!(told.kind(), Mistake::DisplayHelp | Mistake::DisplayVersion) => {
            Ok(Parsed::Text(told.to_string()))
        }
        Err(told) if told.kind() == Mistake::DisplayHelpOnMissingArgumentOrSubcommand => {
            Ok(Parsed::VerbMissing(told.to_string()))
        }
        // The same, where a variable of the environment counts as an argument.
        Err(told) if told.kind() == Mistake::MissingSubcommand => {
            Ok(Parsed::VerbMissing(help_of(&verb_of(&told))))
        }
        Err(mistake) => Err(explain(&mistake)),
    }
}

/// Tells whether a program reads, also where the arguments as a whole cannot be read.
pub fn wants_json(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// Turns a mistake in the arguments into our error: one line that names it, and a hint.
fn explain(mistake: &clap::Error) -> Error {
    let text = mistake.to_string();
    let said = text.strip_prefix("error: ").unwrap_or(&text);
    let end = ["\n\n", "\nUsage:"].iter().filter_map(|mark| said.find(mark)).min();
    let message: Vec<&str> = said[..end.unwrap_or(said.len())].split_whitespace().collect();
    let error = Error::new(ErrorKind::Invalid, message.join(" "));
    error.with_hint(hint_of(mistake, &text))
}

/// The rule that a value broke, the word that was probably meant, or where the help is.
fn hint_of(mistake: &clap::Error, text: &str) -> String {
    let source = std::error::Error::source(mistake);
    if let Some(rule) = source.and_then(|cause| cause.downcast_ref::<Error>()?.hint()) {
        return rule.to_owned();
    }
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    // What clap tells of `--` is for values that begin with a dash, of which we have none.
    if let Some(tip) = tip.filter(|tip| !tip.contains("'-- ")) {
        return tip.to_owned();
    }
    match verb_of(mistake).join(" ") {
        verb if verb.is_empty() => "`collective help` lists what there is".to_owned(),
        verb => format!("`collective help {verb}` says how"),
    }
}

/// The verb that the mistake was made in, out of the usage that clap shows for it.
fn verb_of(mistake: &clap::Error) -> Vec<String> {
    let Some(ContextValue::StyledStr(usage)) = mistake.get(ContextKind::Usage) else {
        return Vec::new();
    };
    let usage = usage.to_string();
    let words = usage.split_whitespace().skip_while(|word| *word != "collective").skip(1);
    words
        .take_while(|word| word.starts_with(|sign: char| sign.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// The help of a verb, for who typed only the name of a group.
fn help_of(verb: &[String]) -> String {
    let mut command = tree();
    command.build();
    let mut below = &mut command;
    for name in verb {
        if below.find_subcommand(name).is_none() {
            break;
        }
        below = below.find_subcommand_mut(name).expect("was found a line above");
    }
    below.render_help().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{CHAPTERS, Parsed, parse, tree, wants_json};

    fn words(line: &str) -> Vec<std::ffi::OsString> {
        line.split(' ').map(Into::into).collect()
    }

    fn mistake(line: &str) -> String {
        match parse(&words(line)) {
            Err(error) => format!("{error} | {}", error.hint().unwrap_or("-")),
            Ok(_) => panic!("`{line}` is no mistake"),
        }
    }

    #[test]
    fn the_tree_holds_together() {
        tree().debug_assert();
    }

    #[test]
    fn every_verb_is_in_one_chapter_of_the_help() {
        let listed: Vec<&str> = CHAPTERS.iter().flat_map(|chapter| chapter.1).copied().collect();
        let mut command = tree();
        command.build();
        let known: BTreeSet<&str> =
            command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(known, listed.iter().copied().collect());
        assert_eq!(known.len(), listed.len(), "a verb is listed twice");
    }

    #[test]
    fn every_verb_has_a_line_and_an_example() {
        let mut command = tree();
        command.build();
        let mut open: Vec<&clap::Command> = command.get_subcommands().collect();
        while let Some(verb) = open.pop() {
            let name = verb.get_name();
            if name == "help" {
                continue;
            }
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!((5..80).contains(&about.len()), "{name}: {about:?}");
            if verb.has_subcommands() {
                open.extend(verb.get_subcommands());
            } else {
                let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.starts_with("Example"), "{name} has no example");
            }
        }
    }

    #[test]
    fn a_mistake_names_the_word_and_says_where_to_look() {
        let said = [
            "collective verzions debian",
            "collective start",
            "collective start Debian",
            "collective start debian --version 0",
            "collective start debian --verbose",
            "collective exec debian",
            "collective exec debian -x",
            "collective appliance prune debian --keep-last -1",
            "collective appliance prune debian --keep-last 0",
            "collective token remove x",
        ]
        .map(mistake)
        .join("\n");
        insta::assert_snapshot!(said, @r#"
        unrecognized subcommand 'verzions' | a similar subcommand exists: 'versions'
        the following required arguments were not provided: <APPLIANCE> | `collective help start` says how
        invalid value 'Debian' for '<APPLIANCE>': "Debian" is not a name for an appliance | a name has 1 to 63 characters of a-z, 0-9, `-`, `.` and `_`, and starts with a letter or digit
        invalid value '0' for '--version <VERSION>': `0` is not a version number | versions are whole numbers from 1
        unexpected argument '--verbose' found | a similar argument exists: '--version'
        the following required arguments were not provided: <COMMAND>... | `collective help exec` says how
        unexpected argument '-x' found | `collective help exec` says how
        invalid value '-1' for '--keep-last <COUNT>': `-1` is not a whole number from 1 | write it in digits, as 3
        invalid value '0' for '--keep-last <COUNT>': `0` is not a whole number from 1 | write it in digits, as 3
        invalid value 'x' for '<TOKEN>': `x` is not a whole number from 1 | write it in digits, as 3
        "#);
    }

    #[test]
    fn help_is_no_mistake() {
        for line in ["collective --help", "collective help undo", "collective --version"] {
            assert!(matches!(parse(&words(line)), Ok(Parsed::Text(_))), "{line}");
        }
    }

    #[test]
    fn json_after_the_command_of_exec_belongs_to_that_command() {
        assert!(wants_json(&words("collective list --json")));
        assert!(!wants_json(&words("collective exec debian -- ip --json addr")));
    }
}
