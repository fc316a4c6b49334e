//! Checks the links of every Markdown file in the repository, and that the book names only what exists: pages, commands,
//! files and tests. Nothing is fetched: links to other hosts are not followed.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// The folder of the book, and the list of its pages.
const BOOK: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";

/// Words of five parts or more that are no names of tests: settings and terms of other programs.
const FOREIGN_WORDS: &[&str] = &[];

/// Content of a Markdown file that the tests check.
#[derive(Default)]
struct Document {
    /// The ids of headings and of `<a id="…">`.
    anchors: BTreeSet<String>,
    links: Vec<String>,
    /// Words in backticks.
    code: Vec<String>,
    /// The lines of fenced blocks.
    blocks: Vec<String>,
}

impl Document {
    fn read(text: &str) -> Self {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
        let mut document = Self::default();
        let (mut heading, mut in_block) = (None::<String>, false);
        for event in Parser::new_ext(text, options) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let id = anchor(&heading.take().unwrap_or_default());
                    document.add_anchor(&id);
                }
                Event::Start(Tag::CodeBlock(kind)) => in_block = matches!(kind, CodeBlockKind::Fenced(_)),
                Event::End(TagEnd::CodeBlock) => in_block = false,
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.to_string());
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.code.push(code.to_string());
                }
                Event::Text(text) if in_block => document.blocks.extend(text.lines().map(str::to_owned)),
                Event::Text(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Html(html) | Event::InlineHtml(html) => {
                    document
                        .links
                        .extend(["href", "src", "srcset"].into_iter().flat_map(|name| attributes(&html, name)));
                    document.anchors.extend(["id", "name"].into_iter().flat_map(|name| attributes(&html, name)));
                }
                _ => {}
            }
        }
        document
    }

    /// Adds the id of a heading; a second one of the same text ends in `-1`.
    fn add_anchor(&mut self, id: &str) {
        let mut candidates = std::iter::once(id.to_owned()).chain((1..).map(|number| format!("{id}-{number}")));
        let free =
            candidates.find(|candidate| !self.anchors.contains(candidate)).expect("there are endless candidates");
        self.anchors.insert(free);
    }
}

/// Returns the id that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim().to_lowercase();
    let kept = heading.chars().filter_map(|character| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        _ if character.is_alphanumeric() => Some(character),
        _ => None,
    });
    kept.collect()
}

/// Returns the values of an attribute in HTML.
fn attributes(html: &str, name: &str) -> Vec<String> {
    let start = format!(" {name}=\"");
    let pieces = html.split(&start).skip(1);
    pieces.filter_map(|piece| piece.split_once('"')).map(|(value, _)| value.to_owned()).collect()
}

/// Returns the Markdown files of the repository with what is in them. Test data are none.
fn documents() -> BTreeMap<String, Document> {
    let files = common::files("").into_iter().filter(|file| is_markdown(file) && !file.starts_with("testbed/assets/"));
    files.map(|file| (file.clone(), Document::read(&common::read(&file)))).collect()
}

fn is_markdown(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "md")
}

/// Returns the path from the root of the repository on that `link` names in a file of `folder`; `None` above the root.
fn resolve(folder: &Path, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in folder.components().chain(Path::new(link).components()) {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            _ => {}
        }
    }
    Some(parts.join("/"))
}

fn is_elsewhere(link: &str) -> bool {
    ["http:", "https:", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

fn fail(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_relative_link_leads_somewhere() {
    let documents = documents();
    let mut problems = Vec::new();
    for (file, document) in &documents {
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        for link in document.links.iter().filter(|link| !is_elsewhere(link)) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { Some(file.clone()) } else { resolve(folder, path) };
            let Some(target) = target.filter(|target| common::root().join(target).exists()) else {
                problems.push(format!("{file}: {link} does not exist"));
                continue;
            };
            let is_known = documents.get(&target).is_none_or(|target| target.anchors.contains(fragment));
            if !fragment.is_empty() && !is_known {
                problems.push(format!("{file}: {link}: {target} has no such heading"));
            }
        }
    }
    fail(&problems);
}

#[test]
fn the_summary_lists_every_page_of_the_book() {
    let documents = documents();
    let listed: BTreeSet<String> =
        documents[SUMMARY].links.iter().filter_map(|link| resolve(Path::new(BOOK), link)).collect();
    let pages: BTreeSet<String> =
        documents.keys().filter(|file| file.starts_with(&format!("{BOOK}/")) && *file != SUMMARY).cloned().collect();
    let mut problems: Vec<String> =
        pages.difference(&listed).map(|page| format!("{page} is not in {SUMMARY}")).collect();
    problems.extend(listed.difference(&pages).map(|page| format!("{SUMMARY}: {page} does not exist")));
    fail(&problems);
}

#[test]
fn every_make_command_exists() {
    let makefile = common::read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']))
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target.trim())
        .collect();
    let mut problems = Vec::new();
    for (file, document) in documents() {
        for line in document.blocks.iter().chain(&document.code) {
            let line = line.trim_start().trim_start_matches("$ ");
            let Some(words) = line.strip_prefix("make ") else { continue };
            let target = words.split_whitespace().find(|word| !word.contains('=')).unwrap_or_default();
            if is_word(target) && !targets.contains(target) {
                problems.push(format!("{file}: make {target} is not in the Makefile"));
            }
        }
    }
    fail(&problems);
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[test]
fn every_file_in_backticks_exists() {
    let top: BTreeSet<String> =
        common::files("").iter().filter_map(|file| file.split_once('/')).map(|(folder, _)| folder.to_owned()).collect();
    let mut problems = Vec::new();
    for (file, document) in documents() {
        // It tells of files that are gone.
        if file == "CHANGELOG.md" {
            continue;
        }
        for code in &document.code {
            let is_path = code.split_once('/').is_some_and(|(folder, rest)| top.contains(folder) && !rest.is_empty())
                && code.chars().all(|character| character.is_alphanumeric() || "/._-".contains(character));
            if is_path && !common::root().join(code).exists() {
                problems.push(format!("{file}: `{code}` does not exist"));
            }
        }
    }
    fail(&problems);
}

/// Comments, scripts and examples name pages of the book, too.
#[test]
fn every_page_that_the_sources_name_exists() {
    let mut problems = Vec::new();
    for file in common::files("").into_iter().filter(|file| !is_markdown(file)) {
        let Ok(text) = std::fs::read_to_string(common::root().join(&file)) else { continue };
        let is_part = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
        for word in text.split(|character| !is_part(character)) {
            let page = word.trim_matches('.');
            if page.starts_with("docs/") && is_markdown(page) && !common::root().join(page).exists() {
                problems.push(format!("{file}: {page} does not exist"));
            }
        }
    }
    fail(&problems);
}

/// A word of five parts or more in backticks is the name of a test, or at least something that the repository has.
#[test]
fn every_test_in_backticks_exists() {
    let extensions = ["rs", "sql", "js", "toml", "yaml", "yml", "json", "tpl", "py"];
    let sources = common::files("").into_iter().filter(|file| {
        // The names of metrics are put together in the sources, and whole only there.
        file == "docs/reference/metrics.md"
            || Path::new(file)
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|one| extensions.contains(&one))
    });
    let mut known: BTreeSet<String> = FOREIGN_WORDS.iter().map(|&word| word.to_owned()).collect();
    for file in sources {
        let text = std::fs::read_to_string(common::root().join(&file)).unwrap_or_default();
        let words = text.split(|character: char| !character.is_alphanumeric() && character != '_');
        known.extend(words.filter(|word| is_name(word)).map(str::to_owned));
    }
    let mut problems = Vec::new();
    for (file, document) in documents() {
        for code in &document.code {
            // As in `outages::a_frozen_shard_is_named`.
            let name = code.rsplit("::").next().unwrap_or_default();
            if is_name(name) && !known.contains(name) {
                problems.push(format!("{file}: `{code}` is nowhere in the sources"));
            }
        }
    }
    fail(&problems);
}

fn is_name(word: &str) -> bool {
    word.matches('_').count() >= 4
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn a_document_is_read_with_its_headings_links_and_code() {
    let document = Document::read(
        "# A `b` & c!\n## Twice\n## Twice\n[one](x.md#y) ![two](i.png) <a id=\"z\" href=\"w.md\"></a> `make it`\n\n```sh\nmake up\n```\n",
    );
    let anchors: Vec<&str> = document.anchors.iter().map(String::as_str).collect();
    assert_eq!(anchors, ["a-b--c", "twice", "twice-1", "z"]);
    assert_eq!(document.links, ["x.md#y", "i.png", "w.md"]);
    assert_eq!(document.code, ["b", "make it"]);
    assert_eq!(document.blocks, ["make up"]);
}

/// Each alert names the entry of the runbook that says what to do.
#[test]
fn every_entry_of_the_runbook_that_an_alert_names_exists() {
    const RULES: &str = "charts/orderflow-monitoring/files/rules.yaml";
    let runbook = common::read("docs/runbook.md");
    let anchors = Document::read(&runbook).anchors;
    let (mut alerts, mut links, mut problems) = (0, 0, Vec::new());
    for line in common::read(RULES).lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            alerts += 1;
            if !runbook.contains(&format!("`{alert}`")) {
                problems.push(format!("docs/runbook.md does not name {alert}"));
            }
        }
        let Some(link) = line.strip_prefix("runbook_url: ") else { continue };
        links += 1;
        let anchor = link.split_once("/runbook.html#").map_or("", |(_, anchor)| anchor);
        if !anchors.contains(anchor) {
            problems.push(format!("{RULES}: {link} is no entry of docs/runbook.md"));
        }
    }
    fail(&problems);
    assert!(alerts > 20 && links == alerts, "{links} links for {alerts} alerts");
}

/// A metric that was renamed would leave a silent alert and an empty panel.
#[test]
fn every_metric_that_the_monitoring_names_is_on_the_page() {
    let page = common::read("docs/reference/metrics.md");
    let is_known = |name: &str| {
        let base = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
        [Some(name), base].into_iter().flatten().any(|name| page.contains(&format!("`{name}`")))
    };
    let mut problems = BTreeSet::new();
    let files = common::files("charts/orderflow-monitoring/files");
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let text = common::read(&file);
        let is_part = |character: char| character.is_ascii_alphanumeric() || "_:.-".contains(character);
        for word in text.split(|character| !is_part(character)) {
            let is_metric = word.starts_with("orderflow_") || word.starts_with("process_");
            if is_metric && !word.contains([':', '.', '-']) && !is_known(word) {
                problems.insert(format!("{file}: {word} is no metric of docs/reference/metrics.md"));
            }
        }
    }
    fail(&problems.into_iter().collect::<Vec<_>>());
}
