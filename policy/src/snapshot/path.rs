//! Patterns of paths. Most are no more than the begin of a path, for which no regular expression has to run at each request.

use regex::Regex;

/// What means something in a regular expression outside of brackets.
const META: &[char] = &['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$'];

/// A regular expression for paths, and the shortest way to tell what it matches.
#[derive(Debug, Clone)]
pub struct PathPattern {
    text: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Begins(String),
    Is(String),
    Matches(Regex),
}

// === impl PathPattern ===

impl PathPattern {
    /// Of a regular expression that was built without flags.
    pub fn new(regex: Regex) -> Self {
        Self {
            text: regex.as_str().to_owned(),
            test: plain(regex.as_str()).unwrap_or(Test::Matches(regex)),
        }
    }

    pub fn is_match(&self, path: &str) -> bool {
        match &self.test {
            Test::Begins(with) => path.starts_with(&**with),
            Test::Is(whole) => path == whole,
            Test::Matches(regex) => regex.is_match(path),
        }
    }

    /// The regular expression.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The same without a regular expression, for one that is anchored at its start as ours are.
fn plain(anchored: &str) -> Option<Test> {
    let pattern = anchored.strip_prefix("^(?:")?.strip_suffix(')')?;
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    if let Some(text) = literal(pattern) {
        return Some(Test::Begins(text));
    }
    if let Some(begin) = pattern.strip_suffix(".*") {
        return literal(begin).map(Test::Begins);
    }
    pattern.strip_suffix('$').and_then(literal).map(Test::Is)
}

/// What a regular expression matches that stands for one text.
fn literal(pattern: &str) -> Option<String> {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|escaped| META.contains(escaped))?),
            c if META.contains(&c) => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn anchored(pattern: &str) -> Option<Regex> {
        Regex::new(pattern)
            .and_then(|_| Regex::new(&format!("^(?:{pattern})")))
            .ok()
    }

    #[test]
    fn a_regular_expression_runs_only_where_one_is_needed() {
        let test = |pattern: &str| PathPattern::new(anchored(pattern).expect(pattern)).test;
        for (pattern, begin) in [
            ("", ""),
            (".*", ""),
            ("/", "/"),
            ("/.*", "/"),
            ("^/", "/"),
            ("/my-app/.*", "/my-app/"),
            (r"/v1\.0/", "/v1.0/"),
        ] {
            let found = test(pattern);
            assert!(
                matches!(&found, Test::Begins(text) if text == begin),
                "{pattern}: {found:?}"
            );
        }
        let found = test("/health$");
        assert!(matches!(&found, Test::Is(text) if text == "/health"), "{found:?}");
        for pattern in [
            r"/a\.*",
            "/a.*$",
            "/a|/b",
            "/a(/.*)?$",
            r"/\d",
            "(?i)/a",
            "/[ab]",
            "/a+",
        ] {
            let found = test(pattern);
            assert!(matches!(&found, Test::Matches(_)), "{pattern}: {found:?}");
        }
    }

    /// A few pieces of patterns, or of paths.
    fn pieces(of: &'static [&'static str]) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(of), 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_matches_what_the_regular_expression_matches(
            pattern in pieces(&[
                "/", "a", "-", "é", ".", "#", "\\", "\\.", "\\$", "^", "$", "*", ".*", "+", "?", "(", ")", "|", "{2}",
            ]),
            path in pieces(&["/", "a", "-", "é", ".", "#", "\\", "$", "^", "*", "\n"]),
        ) {
            if let Some(regex) = anchored(&pattern) {
                let found = PathPattern::new(regex.clone());
                prop_assert_eq!(found.as_str(), regex.as_str());
                // What the pattern may mean, and more behind it.
                let meant = pattern.replace(".*", "").replace(['\\', '^', '$'], "");
                for path in [format!("{meant}{path}"), format!("{meant}\n"), meant, path] {
                    prop_assert_eq!(found.is_match(&path), regex.is_match(&path), "{:?} {:?}", &pattern, &path);
                }
            }
        }
    }
}
