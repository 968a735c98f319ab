//! Parses the page's blocks, and compares the output of a command with the output that the page shows.

pub mod terminal;

use std::collections::HashMap;

/// A console block of the page, for one terminal.
pub struct Block<'a> {
    pub terminal: &'a str,
    /// The block's last command continues to run.
    pub running: bool,
    /// The block needs a real container.
    pub container: bool,
    pub lines: Vec<Line<'a>>,
}

#[derive(Debug)]
pub enum Line<'a> {
    Command(String),
    Output(&'a str),
    ControlC,
}

/// The fenced blocks, each as its info string and its text.
fn fenced(page: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (info, after) = after.split_once('\n').expect("an end of line");
        let (text, after) = after.split_once("\n```").expect("the block's end");
        found.push((info.trim(), text));
        rest = after;
    }
    found
}

/// The languages of all blocks.
pub fn languages(page: &str) -> impl Iterator<Item = &str> {
    let first = |(info, _): (&'_ str, _)| info.split(' ').next().unwrap_or("").len();
    fenced(page)
        .into_iter()
        .map(move |block| &block.0[..first(block)])
}

/// The texts of the blocks in this language.
pub fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let of_language = |(info, _): &(&str, _)| info.split(' ').next() == Some(language);
    let blocks = fenced(page).into_iter().filter(of_language);
    blocks.map(|(_, text)| text).collect()
}

/// The console blocks, in the page's order.
pub fn console_blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    for (info, text) in fenced(page) {
        let mut words = info.split(' ');
        if words.next() != Some("console") {
            continue;
        }
        let words: Vec<&str> = words.collect();
        let [running, container] = ["running", "container"].map(|flag| words.contains(&flag));
        let is_flag = |word: &&str| ["running", "container"].contains(word);
        let terminal = words.into_iter().find(|word| !is_flag(word));
        let mut lines = Vec::new();
        for line in text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                lines.push(Line::Command(command.to_owned()));
            } else if let (Some(more), Some(Line::Command(command))) =
                (line.strip_prefix("> "), lines.last_mut())
            {
                command.push('\n');
                command.push_str(more);
            } else if line == "^C" {
                lines.push(Line::ControlC);
            } else {
                lines.push(Line::Output(line));
            }
        }
        blocks.push(Block {
            terminal: terminal.unwrap_or("main"),
            running,
            container,
            lines,
        });
    }
    blocks
}

/// Translates between the page and this run: words, and GUIDs that differ in each run.
pub struct Likeness {
    /// Pairs of a word in this run and the word in the page.
    words: Vec<(String, String)>,
    /// GUIDs of the page, and those of this run. The mapping is one to one.
    guids: HashMap<String, String>,
}

impl Likeness {
    pub fn new(words: &[(&str, &str)]) -> Self {
        let own = |(run, page): &(&str, &str)| ((*run).to_owned(), (*page).to_owned());
        Self {
            words: words.iter().map(own).collect(),
            guids: HashMap::new(),
        }
    }

    /// A command of the page, translated for this run.
    pub fn as_run(&self, command: &str) -> String {
        let (run, page) = &self.words[0];
        let mut command = command.replace(page, run);
        for (page, run) in &self.guids {
            command = command.replace(page, run);
        }
        command
    }

    /// Compares the first lines with the expected ones, or all lines if `whole`. Returns the number of lines
    /// that matched, or `None`. An expected line `…` matches any number of lines.
    pub fn begin_alike(
        &mut self,
        expected: &[&str],
        lines: &[String],
        whole: bool,
    ) -> Option<usize> {
        let Some((first, rest)) = expected.split_first() else {
            // A block shows no empty last lines.
            let over = lines.iter().all(|line| line.trim().is_empty());
            return (!whole || over).then_some(0);
        };
        if *first == "…" {
            return (0..=lines.len()).find_map(|skipped| {
                let count = self.begin_alike(rest, &lines[skipped..], whole)?;
                Some(skipped + count)
            });
        }
        let (line, others) = lines.split_first()?;
        if !self.alike(first, line) {
            return None;
        }
        Some(1 + self.begin_alike(rest, others, whole)?)
    }

    fn alike(&mut self, shown: &str, line: &str) -> bool {
        let mut line = line.to_owned();
        for (run, page) in &self.words {
            line = replace_words(&line, run, page);
        }
        let (shown, shown_guids) = without_guids(shown);
        let (line, guids) = without_guids(&line);
        shown_guids.len() == guids.len()
            && normalized(&shown) == normalized(&line)
            && shown_guids
                .into_iter()
                .zip(guids)
                .all(|(shown, run)| self.same(shown, run))
    }

    fn same(&mut self, shown: String, run: String) -> bool {
        // GUIDs of the vsock template, derived from names, or well known are the same in each run.
        let fixed = shown == run;
        match self.guids.get(&shown) {
            Some(bound) => *bound == run,
            None if self.guids.values().any(|bound| *bound == run) => false,
            None => {
                // Version 4 is random; all others must be the same.
                let random = shown.as_bytes()[14] == b'4' && run.as_bytes()[14] == b'4';
                if fixed || random {
                    self.guids.insert(shown, run);
                }
                fixed || random
            }
        }
    }
}

/// Replaces whole words only, because a user name may be part of another word.
fn replace_words(text: &str, from: &str, to: &str) -> String {
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_');
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, after) = (&rest[..at], &rest[at + from.len()..]);
        let inside = word(before.chars().next_back()) || word(after.chars().next());
        out.push_str(before);
        out.push_str(if inside { from } else { to });
        rest = after;
    }
    out + rest
}

/// The text with `GUID` in place of each GUID, and the GUIDs in lower case.
fn without_guids(text: &str) -> (String, Vec<String>) {
    let is_guid = |text: &str| {
        text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let (mut out, mut guids) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match rest.get(..36).filter(|head| is_guid(head)) {
            Some(guid) => {
                guids.push(guid.to_ascii_lowercase());
                out.push_str("GUID");
                rest = &rest[36..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    (out, guids)
}

/// The words of a line, with `N` for the numbers that differ in each run: process ids, ages, byte counts,
/// metrics, and a number at the beginning of a line.
fn normalized(line: &str) -> Vec<String> {
    const UNITS: [&str; 7] = ["s", "min", "h", "d", "B", "KiB", "MiB"];
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let counted = line.starts_with("hvsock_") || line.starts_with("process_");
    for index in 0..words.len() {
        let bare = words[index].trim_end_matches([',', ')']);
        if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_digit() || c == '.') {
            continue;
        }
        let after = words
            .get(index + 1)
            .map(|word| word.trim_end_matches([',', ')']));
        let before = index.checked_sub(1).map(|before| words[before].as_str());
        let varies = after.is_some_and(|unit| UNITS.contains(&unit))
            || before.is_some_and(|word| word.ends_with("pid"))
            || index == 0
            || counted && index + 1 == words.len();
        if varies {
            words[index] = words[index].replace(bare, "N");
        }
    }
    words
}
