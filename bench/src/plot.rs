//! Bars in groups, as a standalone SVG that is readable on light and dark.

use std::fmt::Write;

use crate::series::short;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 16.0;
const BOTTOM: f64 = 44.0;
const TOP: f64 = 48.0;
const COLORS: [&str; 3] = ["#2a78d6", "#e0873d", "#7a5cc8"];

/// Draws a group for each label, with one bar for each of `bars`.
pub fn bars(title: &str, labels: &[impl AsRef<str>], bars: &[(&str, Vec<f64>)]) -> String {
    let largest =
        bars.iter().flat_map(|(_, figures)| figures).fold(f64::MIN_POSITIVE, |largest, figure| largest.max(*figure));
    let group = (WIDTH - 2.0 * LEFT) / labels.len() as f64;
    let bar = group * 0.8 / bars.len() as f64;
    let room = HEIGHT - BOTTOM - TOP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\" \
         fill=\"#808080\">\n<title>{title}</title>\n<text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{title}</text>\n"
    );
    for (position, (name, figures)) in bars.iter().enumerate() {
        let color = COLORS[position % COLORS.len()];
        let x = LEFT + position as f64 * 180.0;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{color}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"35\">{name}</text>", x + 15.0);
        for (number, figure) in figures.iter().enumerate() {
            let height = figure / largest * (room - 16.0);
            let x = LEFT + number as f64 * group + group * 0.1 + position as f64 * bar;
            let y = HEIGHT - BOTTOM - height;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"2\" fill=\"{color}\"/>",
                bar - 2.0
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
                x + bar / 2.0 - 1.0,
                y - 4.0,
                short(*figure)
            );
        }
    }
    for (number, label) in labels.iter().enumerate() {
        let x = LEFT + (number as f64 + 0.5) * group;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            label.as_ref()
        );
    }
    svg.push_str("</svg>\n");
    svg
}
