//! Text for people: figures, durations and times; and what makes any text safe in HTML, XML and an address.

use std::fmt;

use time::OffsetDateTime;

/// Text that may say anything, as it can stand in an element or a quoted attribute of HTML or XML. What neither may hold, and
/// what turns the direction of the text around it, is shown as U+FFFD.
pub(crate) struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for character in self.0.chars() {
            match character {
                '&' => out.write_str("&amp;")?,
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                '\n' | '\t' => out.write_char(character)?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                    out.write_char(char::REPLACEMENT_CHARACTER)?;
                }
                _ if character.is_control() => out.write_char(char::REPLACEMENT_CHARACTER)?,
                _ => out.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Escapes text: see [`Escaped`].
pub(crate) fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// One segment of an address's path, or a value of its query.
pub(crate) fn url_segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// At most `n_chars_max` characters of a text, with an ellipsis where it is longer.
pub(crate) fn cut(text: &str, n_chars_max: usize) -> String {
    match text.char_indices().nth(n_chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A figure with some four digits: `0.2311`, `12.35`, `22 150`.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "not finite".to_owned()
    } else if size >= 1e15 {
        format!("{value:.3e}")
    } else if size >= 1000.0 {
        let digits = grouped(rounded(size));
        if value < 0.0 { format!("−{digits}") } else { digits }
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else if size >= 10.0 {
        format!("{value:.2}")
    } else if size >= 1.0 {
        format!("{value:.3}")
    } else if size >= 1e-3 || size == 0.0 {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

/// A count with its digits in groups of three: `22 150`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3 * 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Milliseconds, at a readable precision: `0.25 ms`, `12.3 ms`, `1.25 s`.
pub(crate) fn milliseconds(value: f64) -> String {
    if value >= 10_000.0 {
        duration(value / 1e3)
    } else if value >= 1000.0 {
        format!("{:.2} s", value / 1e3)
    } else if value >= 100.0 {
        format!("{value:.0} ms")
    } else if value >= 10.0 {
        format!("{value:.1} ms")
    } else {
        format!("{value:.2} ms")
    }
}

/// Seconds as people say them: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let seconds = rounded(seconds);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if seconds < 60 {
        format!("{seconds} s")
    } else if minutes < 60 {
        format!("{minutes} min {} s", seconds % 60)
    } else if hours < 24 {
        format!("{hours} h {} min", minutes % 60)
    } else {
        format!("{days} d {} h", hours % 24)
    }
}

/// Seconds since 1970 as `2026-11-29 15:18:42Z`.
pub(crate) fn date_time(time: f64) -> String {
    let Some(at) = moment(time) else { return "unknown".to_owned() };
    let (date, (hour, minute, second)) = (at.date(), at.to_hms());
    format!("{date} {hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970 as `15:18:42Z`.
pub(crate) fn time_of_day(time: f64) -> String {
    let Some(at) = moment(time) else { return "unknown".to_owned() };
    let (hour, minute, second) = at.to_hms();
    format!("{hour:02}:{minute:02}:{second:02}Z")
}

/// A `<time>` element with the text given.
pub(crate) fn time_element(time: f64, text: &str) -> String {
    format!(r#"<time datetime="{}">{}</time>"#, escape(&date_time(time).replace(' ', "T")), escape(text))
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and what is out of range is no moment")]
fn moment(time: f64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.floor() as i64).ok()
}

/// The nearest whole number that is not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
pub(crate) fn rounded(value: f64) -> u64 {
    value.round() as u64
}

/// A count as a number to draw with.
#[expect(clippy::cast_precision_loss, reason = "what is drawn and divided for people needs no more than 53 bits")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// A count of things in memory as a number to draw with.
pub(crate) fn float_len(count: usize) -> f64 {
    float(count as u64)
}

/// `1 shard`, `2 shards`: a count with its noun, given in the plural that ends with `s`.
pub(crate) fn counted(count: u64, plural: &str) -> String {
    let noun = if count == 1 { plural.strip_suffix('s').unwrap_or(plural) } else { plural };
    format!("{} {noun}", grouped(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_peer_is_escaped() {
        let text = "<script>alert('x' & \"y\")</script>\0\u{202e}";
        let expected = "&lt;script&gt;alert(&#39;x&#39; &amp; &quot;y&quot;)&lt;/script&gt;\u{fffd}\u{fffd}";
        assert_eq!(escape(text).to_string(), expected);
        assert_eq!(url_segment("a b/../c?run=ü"), "a%20b%2F..%2Fc%3Frun%3D%C3%BC");
        assert_eq!(cut("grüße", 3), "grü…");
    }

    #[test]
    fn figures_durations_and_times_read_well() {
        for (value, expected) in
            [(0.231_07, "0.2311"), (12.345, "12.35"), (22_149.6, "22\u{202f}150"), (1e-5, "1.00e-5"), (0.0, "0.0000")]
        {
            assert_eq!(figure(value), expected);
        }
        assert_eq!(figure(f64::NAN), "not finite");
        for (seconds, expected) in
            [(0.42, "0.4 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min"), (273_600.0, "3 d 4 h")]
        {
            assert_eq!(duration(seconds), expected);
        }
        assert_eq!(date_time(1_790_000_000.9), "2026-09-21 14:13:20Z");
        assert_eq!(counted(1, "shards"), "1 shard");
    }
}
