//! Sizes, rates and durations, for people.

/// A number of bytes, such as 512 B, 8.39 MB, 3.00 GB.
pub(crate) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    of_unit(bytes as f64)
}

/// Bytes per second, such as 14.10 GB/s.
pub(crate) fn rate(per_second: f64) -> String {
    of_unit(per_second) + "/s"
}

fn of_unit(bytes: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes / unit),
        None => format!("{bytes:.0} B"),
    }
}

/// Seconds, such as 3.10µs, 42.00ms, 5.20s, 2m5s, 1h2m3s.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds >= 60.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole seconds are shown"
        )]
        let whole = seconds as u64;
        let (hours, minutes, left) = (whole / 3600, whole / 60 % 60, whole % 60);
        return if hours > 0 { format!("{hours}h{minutes}m{left}s") } else { format!("{minutes}m{left}s") };
    }
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds >= *unit).unwrap_or((1e-9, "ns"));
    format!("{:.2}{name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!([512, 8_390_000, 3_000_000_000].map(size), ["512 B", "8.39 MB", "3.00 GB"]);
        assert_eq!(rate(14.1e9), "14.10 GB/s");
        let durations = [1.5e-9, 3.1e-6, 0.042, 5.2, 125.0, 3723.0].map(duration);
        assert_eq!(durations, ["1.50ns", "3.10µs", "42.00ms", "5.20s", "2m5s", "1h2m3s"]);
    }
}
