//! Rules on single files, by their text alone.

use std::path::Path;

/// Code lines of one file without its tests, at most. More needs a line here, and the list may only shrink.
const FILE_LINES: usize = 600;
const LONGER_FILES: [&str; 0] = [];

/// Lists the faults of one file.
pub fn faults(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display().to_string();
    let mut faults = word_faults(&shown, text);
    if shown.ends_with(".rs") {
        faults.extend(rust_faults(&shown, text));
    }
    faults
}

fn rust_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.trim_start().starts_with("//!") {
        faults.push(format!("{path}: does not open with its story (`//!`)"));
    }
    let tests_apart = path.contains("/tests/") || path.ends_with("/tests.rs");
    let (code, tests) = text.split_once("#[cfg(test)]\nmod ").unwrap_or((text, ""));
    let (code, tests) = (code_lines(code), code_lines(tests));
    if !tests_apart && code > FILE_LINES && !LONGER_FILES.contains(&path) {
        faults.push(format!("{path}: {code} code lines, and {FILE_LINES} are the limit"));
    }
    if !tests_apart && tests > 60 && tests > code {
        faults.push(format!(
            "{path}: {tests} lines of tests on {code} of code: move them to a sibling"
        ));
    }
    faults
}

fn code_lines(text: &str) -> usize {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// Words that say that something is unfinished, or that name a developer's machine. Put together here so that this
/// file does not find itself.
fn word_faults(path: &str, text: &str) -> Vec<String> {
    let words = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
        ["#[", "ignore"].concat(),
        ["/home", "/user"].concat(),
        ["/wo", "rk/"].concat(),
    ];
    let prose = path == "Cargo.lock" || path.starts_with("testdata/");
    words
        .iter()
        .filter(|word| !prose && text.contains(word.as_str()))
        .map(|word| format!("{path}: contains `{word}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::faults;

    #[test]
    fn a_file_without_a_story_or_too_long_is_a_fault() {
        let long = format!("//! Story.\n{}", "let a = 1;\n".repeat(601));
        assert_eq!(faults(Path::new("crates/a/src/b.rs"), &long).len(), 1);
        assert_eq!(faults(Path::new("crates/a/src/b.rs"), "fn main() {}\n").len(), 1);
        assert!(faults(Path::new("crates/a/src/b.rs"), "//! Story.\nfn main() {}\n").is_empty());
    }

    #[test]
    fn unfinished_words_are_a_fault_anywhere() {
        let word = ["FIX", "ME"].concat();
        assert_eq!(faults(Path::new("docs/guide/a.md"), &word).len(), 1);
    }
}
