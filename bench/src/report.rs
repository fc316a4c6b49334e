//! The report: Markdown tables, with plots beside them.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

#[derive(Debug)]
pub struct Report {
    text: String,
    plots: Vec<(&'static str, String)>,
}

impl Report {
    /// Begins a report. `machine` has the lines of its first table: name and value.
    pub fn new(machine: Vec<[String; 2]>) -> Self {
        let mut report = Self { text: String::new(), plots: Vec::new() };
        report.section("Machine", "");
        report.head(&["", ""]);
        for row in machine {
            report.row(row);
        }
        report
    }

    pub fn section(&mut self, title: &str, about: &str) {
        eprintln!("\n{title}");
        let _ = write!(self.text, "\n## {title}\n");
        if !about.is_empty() {
            let _ = write!(self.text, "\n{about}\n");
        }
    }

    /// Begins a table with these columns.
    pub fn head(&mut self, columns: &[&str]) {
        eprintln!("  {}", columns.join("  |  "));
        let _ = write!(self.text, "\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        eprintln!("  {}", cells.join("  |  "));
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    pub fn plot(&mut self, name: &'static str, svg: String) {
        let _ = write!(self.text, "\n![{name}](images/bench-{name}.svg)\n");
        self.plots.push((name, svg));
    }

    /// Prints the report, and writes it to `file` after its marker; the plots go to `images` beside it.
    pub fn publish(self, file: Option<&Path>) -> Result<()> {
        const MARKER: &str = "<!-- what follows is written by make bench -->\n";
        println!("{}", self.text);
        let Some(file) = file else { return Ok(()) };
        let before = fs::read_to_string(file).unwrap_or_default();
        let before = before.split_once(MARKER).map_or(before.as_str(), |(before, _)| before);
        fs::write(file, format!("{before}{MARKER}{}", self.text))
            .with_context(|| format!("write {}", file.display()))?;
        let images = file.parent().unwrap_or(Path::new(".")).join("images");
        fs::create_dir_all(&images).with_context(|| format!("create {}", images.display()))?;
        for (name, svg) in self.plots {
            let image = images.join(format!("bench-{name}.svg"));
            fs::write(&image, svg).with_context(|| format!("write {}", image.display()))?;
        }
        Ok(())
    }
}
