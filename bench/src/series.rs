//! The figures of several rounds: their median and range.

use std::fmt;

#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Returns the median, or 0 without figures.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => 0.0,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        }
    }

    /// Divides the figures round by round, so that a change between rounds affects both sides.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect())
    }

    fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, 0.0), |(low, high), figure| (low.min(*figure), high.max(*figure)))
    }
}

/// Shows the figures as `median (lowest to highest)`.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.range();
        match self.0.len() {
            0 => f.write_str("–"),
            1 => f.write_str(&short(self.median())),
            _ => write!(f, "{} ({} to {})", short(self.median()), short(low), short(high)),
        }
    }
}

/// Returns a figure with three significant digits.
pub fn short(figure: f64) -> String {
    match figure.abs() {
        large if large >= 999.5 => {
            let digits = format!("{figure:.0}");
            let cut = digits.len() % 3;
            let (head, tail) = digits.split_at(cut);
            let groups = tail.as_bytes().chunks(3).map(|group| std::str::from_utf8(group).unwrap_or_default());
            std::iter::once(head).filter(|head| !head.is_empty()).chain(groups).collect::<Vec<_>>().join(",")
        }
        large if large >= 100.0 => format!("{figure:.0}"),
        large if large >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_shown_as_median_and_range() {
        let mut series = Series::default();
        assert_eq!(series.to_string(), "–");
        for figure in [4.0, 1.0, 12_345.0] {
            series.push(figure);
        }
        assert_eq!(series.to_string(), "4.00 (1.00 to 12,345)");
        series.push(6.0);
        assert!((series.median() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn large_figures_are_grouped() {
        assert_eq!(
            [999.0, 999.9, 1000.0, 123_456.7, 1_000_000.0].map(short),
            ["999", "1,000", "1,000", "123,457", "1,000,000"]
        );
    }
}
