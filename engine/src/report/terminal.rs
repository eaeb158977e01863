//! The terminal, if there is one: what it can do, how wide it is, and text that fits it.

use std::io::{IsTerminal, stderr, stdout};

use terminal_size::{Height, Width, terminal_size_of};

/// Whether standard error is a terminal on which a line can be drawn again and again.
pub fn can_draw() -> bool {
    stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb")
}

/// Whether standard error is a terminal that shows colours, and the user wants them (<https://no-color.org>).
pub fn has_colours() -> bool {
    can_draw() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal that standard output goes to, if it goes to one.
pub fn columns() -> Option<usize> {
    terminal_size_of(stdout()).map(|(Width(columns), _)| columns.into())
}

/// Columns and rows of the terminal that standard error goes to, if it goes to one.
pub fn drawing_size() -> Option<(u16, u16)> {
    terminal_size_of(stderr()).map(|(Width(columns), Height(rows))| (columns, rows))
}

/// A line as lines of at most so many columns, broken at spaces, of which all but the first are indented. A word that is longer
/// stays whole, where it is, so that a path or an address can be copied. Colours take no columns.
pub fn wrapped(line: &str, columns: usize, indent: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let mut position = 0; // columns of the current line that are taken
    for (number, word) in line.split(' ').enumerate() {
        let n_columns = n_columns(word);
        let start = if number == 0 { 0 } else { position + 1 };
        if start > indent && n_columns > 0 && start + n_columns > columns && indent + n_columns <= columns {
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            position = indent + n_columns;
        } else {
            if number > 0 {
                out.push(' ');
            }
            position = start + n_columns;
        }
        out.push_str(word);
    }
    out
}

fn n_columns(word: &str) -> usize {
    let mut is_colour = false;
    let is_shown = |character: &char| {
        let was_colour = is_colour;
        is_colour = *character == '\x1b' || (is_colour && *character != 'm');
        !was_colour && !is_colour
    };
    word.chars().filter(is_shown).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_line_is_wrapped_at_spaces() {
        let check = |line: &str, columns: usize, indent: usize, expected: &str| {
            assert_eq!(wrapped(line, columns, indent), expected);
        };
        check("", 10, 2, "");
        check("one two", 7, 2, "one two");
        check("one two three four", 7, 2, "one two\n  three\n  four");
        check("name    text of a row", 16, 8, "name    text of\n        a row");
        check("größe grün", 10, 2, "größe grün");
        check("\x1b[33m WARN\x1b[0m of two", 10, 6, "\x1b[33m WARN\x1b[0m of\n      two");
        // Words that are longer than a line.
        check("weights  runs/long/path", 12, 9, "weights  runs/long/path");
        check("see runs/long/path now", 8, 2, "see runs/long/path\n  now");
        check("runs/long/path", 8, 2, "runs/long/path");
    }
}
