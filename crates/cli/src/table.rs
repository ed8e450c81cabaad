//! Tables as a terminal shows them: a heading, columns as wide as their widest cell, no frame. Pure.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableStyle};

/// One column: its heading, and whether it holds figures, which stand at the right.
#[derive(Clone, Copy)]
pub struct Column {
    heading: &'static str,
    figures: bool,
}

/// Makes a column of words.
pub const fn words(heading: &'static str) -> Column {
    Column { heading, figures: false }
}

/// Makes a column of figures.
pub const fn figures(heading: &'static str) -> Column {
    Column { heading, figures: true }
}

/// Draws the table; `empty` is what is said when there is no row.
pub fn draw(columns: &[Column], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| cell(column.heading, *column)));
    for row in rows {
        table.add_row(row.iter().zip(columns).map(|(text, column)| cell(text, *column)));
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    let drawn: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    drawn.join("\n")
}

/// Control signs in a cell could move the cursor: names are checked, but notes are anybody's text.
fn cell(text: &str, column: Column) -> Cell {
    let side = if column.figures { CellAlignment::Right } else { CellAlignment::Left };
    Cell::new(crate::text::plain(text)).set_alignment(side)
}

#[cfg(test)]
mod tests {
    use super::{draw, figures, words};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["debian".to_owned(), "12".to_owned(), "running".to_owned()],
            vec!["tiny".to_owned(), "1".to_owned(), "stopped".to_owned()],
        ];
        let drawn = draw(&[words("APPLIANCE"), figures("VERSION"), words("STATE")], rows, "none");
        insta::assert_snapshot!(drawn, @r"
        APPLIANCE  VERSION  STATE
        debian          12  running
        tiny             1  stopped
        ");
    }

    #[test]
    fn a_table_without_rows_says_so() {
        assert_eq!(draw(&[words("USER")], Vec::new(), "no users yet"), "no users yet");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let drawn = draw(&[words("NOTES")], vec![vec!["a\u{1b}[2Jb\nc".to_owned()]], "");
        assert_eq!(drawn.lines().nth(1), Some("a?[2Jb?c"));
    }
}
