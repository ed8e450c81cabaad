//! `docs/guide/commands.md` holds the help of every verb; the command and the document cannot differ.

use std::fmt::Write as _;
use std::path::Path;

use crate::runner::Home;

const HEAD: &str = "\
# Every command

This page is what `collective help VERB` says, for all verbs. It is made by the tests of the command; after a change, run
them once with `UPDATE_HELP=1`.
";

#[test]
fn the_reference_in_the_guide_is_what_the_command_says() {
    let home = Home::new();
    let mut page = HEAD.to_owned();
    write_help(&home, &mut Vec::new(), &mut page);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/commands.md");
    if std::env::var_os("UPDATE_HELP").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some(line) = page.lines().zip(written.lines()).position(|(said, read)| said != read) {
        let (said, read) = (page.lines().nth(line), written.lines().nth(line));
        panic!(
            "docs/guide/commands.md, line {}: {read:?}, but the command says {said:?}",
            line + 1
        );
    }
    assert_eq!(page.len(), written.len(), "docs/guide/commands.md has another end");
}

/// Writes the help of one verb and of those below it.
fn write_help(home: &Home, verb: &mut Vec<String>, page: &mut String) {
    let mut words = vec!["help"];
    words.extend(verb.iter().map(String::as_str));
    let ended = home.run(&words);
    assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
    let title = ["collective"].into_iter().chain(words.into_iter().skip(1)).collect::<Vec<_>>();
    let text: Vec<&str> = ended.stdout.lines().map(str::trim_end).collect();
    writeln!(page, "\n## {}\n\n```text\n{}\n```", title.join(" "), text.join("\n")).unwrap();
    for below in verbs_of(&ended.stdout, verb.is_empty()) {
        verb.push(below);
        write_help(home, verb, page);
        verb.pop();
    }
}

/// Reads the verbs out of a help text: of the first page under any heading, of a group under `Commands:`.
fn verbs_of(help: &str, first_page: bool) -> Vec<String> {
    let mut listed = false;
    let mut verbs = Vec::new();
    for line in help.lines().skip_while(|line| !line.starts_with("Usage:")).skip(1) {
        if !line.starts_with(' ') && !line.is_empty() {
            listed = line == "Commands:" || (first_page && line != "Example:");
        } else if let Some(entry) = line.strip_prefix("  ").filter(|_| listed)
            && entry.starts_with(|sign: char| sign.is_ascii_lowercase())
            && let Some(verb) = entry.split_whitespace().next()
            && verb != "help"
        {
            verbs.push(verb.to_owned());
        }
    }
    verbs
}
