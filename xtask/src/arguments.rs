//! Values that several commands take, and what to say of a wrong one.

use std::path::PathBuf;

/// A size on the command line: `8G`, `512M`, in MiB.
pub(crate) fn parse_mib(text: &str) -> Result<u64, String> {
    let (digits, scale) = match text.char_indices().last() {
        Some((at, 'G' | 'g')) => (text.get(..at).unwrap_or_default(), 1024),
        Some((at, 'M' | 'm')) => (text.get(..at).unwrap_or_default(), 1),
        _ => return Err("a size ends in M or G, as in 512M or 8G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{digits}` is not a number"))?;
    number
        .checked_mul(scale)
        .ok_or_else(|| "that is too large".to_owned())
}

/// Where a plot goes: only SVG is drawn.
pub(crate) fn parse_svg(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension() {
        Some(extension) if extension == "svg" => Ok(path),
        _ => Err("the plot is an SVG: the file name must end in .svg".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(parse_mib("8G"), Ok(8192));
        assert_eq!(parse_mib("512m"), Ok(512));
        assert!(parse_mib("512").is_err());
        assert!(parse_mib("G").is_err());
        assert!(parse_mib("").is_err());
        assert!(parse_mib("99999999999999999999G").is_err());
        assert!(parse_mib("18446744073709551615G").is_err());
    }

    #[test]
    fn plots_are_svg() {
        assert!(parse_svg("a/b.svg").is_ok());
        assert!(parse_svg("a/b.png").is_err());
    }
}
