//! Rust text taken apart just far enough for the rules: what of each line is code and what is comment, which lines are
//! test code, and the attributes. Lexical structure: The Rust Reference, "Comments", "Literal expressions".

/// One line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The code, without comments; literals are reduced to their quotes, so nothing in here was inside a string.
    pub(super) code: String,
    /// What the strings on this line hold.
    pub(super) literals: String,
    /// What comments say on this line, without `//`; documentation keeps its third character: `/` or `!`.
    pub(super) comment: String,
    /// Whether only tests compile it.
    pub(super) test: bool,
}

/// `#[..]` or `#![..]`, possibly over several lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Indices into the lines.
    pub(super) first_line: usize,
    pub(super) last_line: usize,
    /// Between the brackets, without white space.
    pub(super) text: String,
}

pub(super) struct Source {
    pub(super) lines: Vec<Line>,
    pub(super) attributes: Vec<Attribute>,
}

impl Source {
    pub(super) fn parse(text: &str) -> Self {
        let mut source = Self { lines: split(text), attributes: Vec::new() };
        source.attributes = source.find_attributes();
        source.mark_tests();
        source
    }

    /// The comments that explain line `at`: its own, and the whole-line comments right above. Documentation explains
    /// something else.
    pub(super) fn reasons(&self, at: usize) -> impl Iterator<Item = &str> {
        let above =
            self.lines[..at].iter().rev().take_while(|line| line.code.trim().is_empty() && !line.comment.is_empty());
        let all = std::iter::once(&self.lines[at]).chain(above).map(|line| line.comment.as_str());
        all.filter(|comment| !comment.starts_with(['/', '!']))
    }

    /// Every character of code with its line's index.
    fn characters(&self) -> impl Iterator<Item = (usize, char)> {
        self.lines.iter().enumerate().flat_map(|(n, line)| line.code.chars().map(move |c| (n, c)))
    }

    fn find_attributes(&self) -> Vec<Attribute> {
        let mut found = Vec::new();
        let mut characters = self.characters().filter(|(_, c)| !c.is_whitespace()).peekable();
        while let Some((first_line, c)) = characters.next() {
            if c != '#' {
                continue;
            }
            characters.next_if(|&(_, c)| c == '!');
            if characters.next_if(|&(_, c)| c == '[').is_none() {
                continue;
            }
            let (mut depth, mut text) = (1, String::new());
            for (last_line, c) in characters.by_ref() {
                depth += nesting(c);
                if depth == 0 {
                    found.push(Attribute { first_line, last_line, text });
                    break;
                }
                text.push(c);
            }
        }
        found
    }

    /// Marks what follows `#[test]` or `#[cfg(test)]`: up to the end of the item's block, or to its semicolon.
    fn mark_tests(&mut self) {
        let starts: Vec<(usize, usize)> =
            self.attributes.iter().filter(|a| is_for_tests(&a.text)).map(|a| (a.first_line, a.last_line)).collect();
        for (first, last) in starts {
            let end = self.end_of_item(last);
            self.lines[first..=end].iter_mut().for_each(|line| line.test = true);
        }
    }

    /// The last line of the item whose attribute ends on line `attribute`.
    fn end_of_item(&self, attribute: usize) -> usize {
        let mut depth = 0;
        for (n, c) in self.characters().skip_while(|&(n, _)| n <= attribute) {
            depth += nesting(c);
            let left_its_parent = depth < 0;
            if left_its_parent || depth == 0 && (c == '}' || c == ';') {
                return n;
            }
        }
        self.lines.len() - 1
    }
}

fn nesting(c: char) -> i32 {
    match c {
        '(' | '[' | '{' => 1,
        ')' | ']' | '}' => -1,
        _ => 0,
    }
}

fn is_for_tests(attribute: &str) -> bool {
    let condition = attribute.strip_prefix("cfg(").and_then(|c| c.strip_suffix(')'));
    attribute == "test" || condition.is_some_and(implies_test)
}

/// Whether this condition, written without white space, can hold only where `test` does.
fn implies_test(condition: &str) -> bool {
    let list = |operator| condition.strip_prefix(operator).and_then(|c| c.strip_suffix(')')).map(split_list);
    match (list("all("), list("any(")) {
        (Some(all), _) => all.into_iter().any(implies_test),
        (_, Some(any)) => any.into_iter().all(implies_test),
        _ => condition == "test",
    }
}

/// At the commas outside parentheses.
fn split_list(list: &str) -> Vec<&str> {
    let mut depth = 0;
    let outside = |c| {
        depth += nesting(c);
        c == ',' && depth == 0
    };
    list.split(outside).collect()
}

/// The identifiers and keywords in a piece of code.
pub(super) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Where the lexer is.
enum State {
    Code,
    LineComment,
    /// Nested so deep.
    BlockComment(u32),
    Text,
    /// Ends with a quote and so many `#`.
    RawText(usize),
}

fn split(text: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        if c == '\n' {
            lines.push(Line::default());
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            rest = &rest[taken..];
            continue;
        }
        let at = lines.len() - 1;
        let line = &mut lines[at];
        match state {
            State::Code if rest.starts_with("//") => (state, taken) = (State::LineComment, 2),
            State::Code if rest.starts_with("/*") => (state, taken) = (State::BlockComment(1), 2),
            State::Code if c == '"' => {
                line.code.push(c);
                state = State::Text;
            }
            State::Code if c == 'r' && !ends_in_word(&line.code) && raw_hashes(rest).is_some() => {
                let hashes = raw_hashes(rest).unwrap_or(0);
                line.code.push('"');
                (state, taken) = (State::RawText(hashes), hashes + 2);
            }
            State::Code if c == '\'' => {
                taken = character_len(rest);
                line.code.push_str(if taken > 1 { "''" } else { "'" });
            }
            // `b"`, `br"`, `c"`, `cr"`: the prefix is not a word that the raw string's `r` would continue.
            State::Code if (c == 'b' || c == 'c') && !ends_in_word(&line.code) && prefixes_literal(&rest[1..]) => {}
            State::Code => line.code.push(c),
            State::LineComment => line.comment.push(c),
            State::BlockComment(depth) if rest.starts_with("*/") => {
                (state, taken) = (if depth == 1 { State::Code } else { State::BlockComment(depth - 1) }, 2);
            }
            State::BlockComment(depth) if rest.starts_with("/*") => {
                (state, taken) = (State::BlockComment(depth + 1), 2);
            }
            State::BlockComment(_) => line.comment.push(c),
            // An escaped line end is left to the line count above.
            State::Text if c == '\\' && !rest[1..].starts_with('\n') => {
                taken = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                line.literals.push_str(&rest[..taken]);
            }
            State::Text if c == '"' => {
                line.code.push(c);
                state = State::Code;
            }
            State::RawText(hashes) if c == '"' && rest[1..].chars().take_while(|&c| c == '#').count() >= hashes => {
                line.code.push(c);
                (state, taken) = (State::Code, 1 + hashes);
            }
            State::Text | State::RawText(_) => line.literals.push(c),
        }
        rest = &rest[taken..];
    }
    if text.ends_with('\n') {
        lines.pop();
    }
    lines
}

fn ends_in_word(code: &str) -> bool {
    code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// `rest` starts with `r`: the number of `#` if it is a raw string.
fn raw_hashes(rest: &str) -> Option<usize> {
    let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
    rest[1 + hashes..].starts_with('"').then_some(hashes)
}

fn prefixes_literal(rest: &str) -> bool {
    rest.starts_with('"') || (rest.starts_with('r') && raw_hashes(rest).is_some())
}

/// `rest` starts with `'`: the length of the character literal in bytes, or 1 if it is a lifetime.
fn character_len(rest: &str) -> usize {
    let inside = &rest[1..];
    if let Some(escape) = inside.strip_prefix('\\') {
        let kind = escape.chars().next().map_or(0, char::len_utf8);
        return escape[kind..].find('\'').map_or(1, |end| 2 + kind + end + 1);
    }
    let one = inside.chars().next().map_or(0, char::len_utf8);
    if one > 0 && inside[one..].starts_with('\'') { 1 + one + 1 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        split(text).into_iter().map(|line| line.code).collect()
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        assert_eq!(code("let a = \"todo!\"; // todo!\nb\n"), ["let a = \"\"; ", "b"]);
        assert_eq!(code("a /* x /* y */ z */ b"), ["a  b"]);
        assert_eq!(code("f(r#\"a \"quoted\" // b\"#) + c"), ["f(\"\") + c"]);
        assert_eq!(code("f(b\"x\\\"y\", br\"\\\", c\"z\")"), ["f(\"\", \"\", \"\")"]);
        assert_eq!(code("\"one\\\n  two\" three"), ["\"", "\" three"]);
        assert_eq!(split("a // why\n//! doc\n")[0].comment, " why");
        assert_eq!(split("a // why\n//! doc\n")[1].comment, "! doc");
    }

    #[test]
    fn characters_are_literals_and_lifetimes_are_not() {
        assert_eq!(code("f('\"', '\\'', '\\u{7f}', 'é') // x"), ["f('', '', '', '') "]);
        assert_eq!(code("fn f<'a>(x: &'a str) -> &'a str"), ["fn f<'a>(x: &'a str) -> &'a str"]);
        assert_eq!(code("for\"x\" bar\"y\""), ["for\"\" bar\"\""]);
    }

    #[test]
    fn attributes_are_found_over_lines() {
        let source = Source::parse("#![allow(x)]\n#[expect(\n    y,\n    reason = \"z\"\n)]\nfn f() { a[0] }\n");
        let found: Vec<_> = source.attributes.iter().map(|a| (a.first_line, a.last_line, a.text.as_str())).collect();
        assert_eq!(found, [(0, 0, "allow(x)"), (1, 4, "expect(y,reason=\"\")")]);
    }

    #[test]
    fn test_items_end_where_their_block_ends() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nuse d;\nfn e(x: [u8; 2]) {}\n";
        let marked: Vec<bool> = Source::parse(text).lines.iter().map(|line| line.test).collect();
        assert_eq!(marked, [false, true, true, true, true, false, true, true, false]);
        let text = "#[test]\nfn a(x: [u8; 2]) {\n}\n#[cfg(not(test))]\nfn b() {}\n#[cfg(all(test, loom))]\nmod c {}\n";
        let marked: Vec<bool> = Source::parse(text).lines.iter().map(|line| line.test).collect();
        assert_eq!(marked, [true, true, true, false, false, true, true]);
        assert!(
            ["test", "cfg(test)", "cfg(all(unix,test,not(loom)))", "cfg(any(test,all(a,test)))"]
                .iter()
                .all(|a| is_for_tests(a))
        );
        assert!(
            !["cfg(not(test))", "cfg(any(test,loom))", "cfg(tests)", "cfg(all(a,b))"].iter().any(|a| is_for_tests(a))
        );
        let text = "struct A {\n    #[cfg(test)]\n    b: u8,\n}\nfn c() {}\n";
        let marked: Vec<bool> = Source::parse(text).lines.iter().map(|line| line.test).collect();
        assert_eq!(marked, [false, true, true, true, false]);
    }
}
