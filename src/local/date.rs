//! The three ways in which times are written on the wire. Pure.

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// Seconds since the Unix epoch of an `x-amz-date` (`20250102T030405Z`).
pub fn parse_amz(text: &str) -> Option<i64> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let (date, time) = text.split_once('T')?;
    let time = time.strip_suffix('Z')?;
    if date.len() != 8 || !(date.bytes().chain(time.bytes())).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    let parsed = DateTime::from_str(&iso, Format::DateTime).ok()?;
    Some(parsed.secs())
}

/// `seconds` since the Unix epoch as an `x-amz-date`.
pub fn amz(seconds: i64) -> String {
    compact(DateTime::from_secs(seconds))
}

/// `millis` since the Unix epoch as `20250102T030405.007Z`: sorts by time and needs no quoting in a shell.
pub fn file_name(millis: u64) -> String {
    let text = amz(i64::try_from(millis / 1000).unwrap_or(i64::MAX));
    format!("{}.{:03}Z", text.trim_end_matches('Z'), millis % 1000)
}

/// `seconds` since the Unix epoch as the value of a `Date` header (RFC 9110, section 5.6.7).
pub fn http(seconds: i64) -> String {
    DateTime::from_secs(seconds)
        .fmt(Format::HttpDate)
        .unwrap_or_else(|_| "Thu, 01 Jan 1970 00:00:00 GMT".into())
}

fn compact(time: DateTime) -> String {
    let text = time
        .fmt(Format::DateTime)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".into());
    text.replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amz_dates_go_there_and_back() {
        assert_eq!(parse_amz("20250102T030405Z"), Some(1_735_787_045));
        assert_eq!(amz(1_735_787_045), "20250102T030405Z");
        for wrong in [
            "",
            "20250102T030405",
            "20250102030405ZZ",
            "2025-102T030405Z",
            "20251302T030405Z",
            "2025010éT03405Z",
        ] {
            assert_eq!(parse_amz(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn headers_and_file_names() {
        assert_eq!(http(1_735_787_045), "Thu, 02 Jan 2025 03:04:05 GMT");
        assert_eq!(file_name(1_735_787_045_007), "20250102T030405.007Z");
    }
}
