//! What must hold for any bytes; shared by the fuzz targets and the property tests.

use std::path::Path;

use catalog::manifest::{self, Content, Severity, Workspace, render};

/// Reads a text as a manifest and checks what is promised about every result.
pub fn parse(text: &str) {
    let file = manifest::parse(&"fuzz.toml".into(), text);
    if file.has_errors() {
        assert!(file.is_empty());
    }
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for it in &file.diagnostics {
        assert!(it.line >= 1 && it.column >= 1 && it.line as usize <= lines, "{it:?}");
        assert!((it.line, it.column) <= (it.end_line, it.end_column), "{it:?}");
        assert!(!it.message.is_empty() && !it.message.contains('\n'), "{it:?}");
    }
    assert_eq!(file, manifest::parse(&"fuzz.toml".into(), text), "the same text means the same");
}

/// Reads a text, builds a catalog of it and renders what is wrong in every format.
pub fn render(text: &str) {
    let mut workspace = Workspace::new();
    let path = "fuzz.toml".into();
    let read = manifest::read(&path, &Content::Text(text.into()));
    workspace.set_parsed(path, read);
    let build = workspace.build();
    let errors = build.diagnostics.iter().filter(|it| it.severity == Severity::Error).count();
    assert_eq!(errors > 0, build.files.invalid > 0);
    for styled in [false, true] {
        let shown = render::human(&build.diagnostics, &|_| Some(text.to_owned()), styled);
        assert_eq!(shown.is_empty(), build.diagnostics.is_empty());
    }
    // A file may have changed since it was judged.
    let half: String = text.chars().take(text.chars().count() / 2).collect();
    render::human(&build.diagnostics, &|_| Some(half.clone()), false);
    render::human(&build.diagnostics, &|_| None, false);
    let github = render::github(&build.diagnostics, Path::new("providers.d"));
    assert_eq!(github.lines().count(), build.diagnostics.len());
    serde_json::to_string(&render::json(&build.diagnostics)).expect("diagnostics are plain values");
}
