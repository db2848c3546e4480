//! Models into the text of a manifest, keeping every comment and every line that stands there.
//!
//! PURE. Not its job: reading or writing files, or choosing models. Invariant: the new text declares exactly what the
//! old one did and the models added; a text for which that cannot be shown is not returned.

use std::{collections::BTreeSet, sync::Arc};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use catalog::{
    manifest::{self, ParsedFile, Severity},
    model::{HealthPolicy, ManifestPath, Provider, Route},
};
use provider::ListedModel;

/// Files over this are refused by name when they are read.
const MAX_FILE: usize = 1024 * 1024;

/// A manifest with models added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The same as before where nothing was added.
    pub text: String,
    pub added: Vec<String>,
    /// Models that a manifest cannot declare, each with the reason.
    pub left_out: Vec<(String, String)>,
}

/// Why a manifest is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("{path}:{line}: {message}\nhint: fix the manifest first; `providerd validate` shows all of it")]
    Invalid { path: ManifestPath, line: u32, message: String },
    #[error("{path} does not declare `{provider}`")]
    NotThere { path: ManifestPath, provider: String },
    #[error(
        "{path} would grow over {MAX_FILE} bytes, and would not be read any more\n\
         hint: give the provider a file of its own, or add fewer models with --match"
    )]
    TooLarge { path: ManifestPath },
    #[error("{path} is written in a way that cannot be added to safely\nhint: add the models by hand")]
    Unfit { path: ManifestPath },
}

/// Declares `models` for `provider`, in the order given; those declared already are passed over.
///
/// # Errors
/// [`EditError`]; the manifest must be free of errors before, and is after.
pub fn add_models(
    path: &ManifestPath,
    text: &str,
    provider: &str,
    models: &[&ListedModel],
) -> Result<Edited, EditError> {
    let unfit = || EditError::Unfit { path: path.clone() };
    let before = manifest::parse(path, text);
    if let Some(problem) = before.diagnostics.iter().find(|it| it.severity == Severity::Error) {
        let (line, message) = (problem.line, problem.message.clone());
        return Err(EditError::Invalid { path: path.clone(), line, message });
    }
    let declared = before
        .providers
        .iter()
        .find(|it| *it.name == *provider)
        .ok_or_else(|| EditError::NotThere { path: path.clone(), provider: provider.to_owned() })?;

    let mut have: BTreeSet<&str> = declared.models.iter().map(|model| &*model.name).collect();
    let mut edited = Edited { text: text.to_owned(), added: Vec::new(), left_out: Vec::new() };
    let mut fresh = Vec::new();
    for &model in models {
        if !have.insert(&model.id) {
            continue;
        }
        match refused(model) {
            Some(reason) => edited.left_out.push((model.id.clone(), reason)),
            None => {
                edited.added.push(model.id.clone());
                fresh.push(model);
            }
        }
    }
    if fresh.is_empty() {
        return Ok(edited);
    }
    let mut document: DocumentMut = text.parse().map_err(|_| unfit())?;
    let item = document
        .get_mut("providers")
        .and_then(Item::as_table_like_mut)
        .and_then(|providers| providers.get_mut(provider))
        .ok_or_else(unfit)?;
    insert(item, &fresh).ok_or_else(unfit)?;
    edited.text = like(text, document.to_string());
    if edited.text.len() > MAX_FILE {
        return Err(EditError::TooLarge { path: path.clone() });
    }

    let after = manifest::parse(path, &edited.text);
    let mut expected = bare(&before);
    let grown = expected.providers.iter_mut().find(|it| *it.name == *provider).ok_or_else(unfit)?;
    grown.models.extend(fresh.iter().filter_map(|model| sample(model).ok()));
    if after.has_errors() || bare(&after) != expected {
        return Err(unfit());
    }
    Ok(edited)
}

/// Why a manifest cannot declare this model: its name looks like a key, for instance.
fn refused(model: &ListedModel) -> Option<String> {
    sample(model).err()
}

/// The model as a manifest that declares nothing else reads back.
fn sample(model: &ListedModel) -> Result<catalog::model::Model, String> {
    let mut models = ArrayOfTables::new();
    models.push(table(model));
    let mut it = Table::new();
    it.insert("type", toml_edit::value("openai"));
    it.insert("models", Item::ArrayOfTables(models));
    let mut providers = Table::new();
    providers.insert("sample", Item::Table(it));
    let mut document = DocumentMut::new();
    document.insert("providers", Item::Table(providers));
    let parsed = manifest::parse(&Arc::from("sample.toml"), &document.to_string());
    if let Some(problem) = parsed.diagnostics.into_iter().find(|it| it.severity == Severity::Error) {
        return Err(problem.message);
    }
    let provider = parsed.providers.first().and_then(|provider| provider.models.first());
    let mut read = provider.cloned().ok_or_else(|| "it cannot be declared".to_owned())?;
    read.line = 0;
    Ok(read)
}

/// The keys of one model, in the order in which the documentation lists them.
fn fields(model: &ListedModel) -> Vec<(&'static str, Value)> {
    let mut fields = vec![("name", Value::from(model.id.as_str()))];
    fields.extend(model.display_name.as_deref().map(|name| ("display_name", name.into())));
    let tokens = model.context_length.and_then(|tokens| i32::try_from(tokens).ok()).filter(|it| *it > 0);
    fields.extend(tokens.map(|tokens| ("context_length", i64::from(tokens).into())));
    fields.extend(model.cost_in.map(|cost| ("cost_per_1m_input_tokens", cost.into())));
    fields.extend(model.cost_out.map(|cost| ("cost_per_1m_output_tokens", cost.into())));
    fields
}

/// `[[providers.….models]]`, after an empty line.
fn table(model: &ListedModel) -> Table {
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    for (key, value) in fields(model) {
        table.insert(key, Item::Value(value));
    }
    table
}

fn inline(model: &ListedModel) -> InlineTable {
    let mut table = InlineTable::new();
    for (key, value) in fields(model) {
        table.insert(key, value);
    }
    table
}

/// Adds models in the style in which the provider declares its others.
fn insert(provider: &mut Item, models: &[&ListedModel]) -> Option<()> {
    match provider {
        Item::Table(provider) => match provider.get_mut("models") {
            None => {
                let mut tables = ArrayOfTables::new();
                models.iter().for_each(|model| tables.push(table(model)));
                provider.insert("models", Item::ArrayOfTables(tables));
            }
            Some(Item::ArrayOfTables(tables)) => models.iter().for_each(|model| tables.push(table(model))),
            Some(Item::Value(Value::Array(array))) => extend(array, models),
            Some(_) => return None,
        },
        Item::Value(Value::InlineTable(provider)) => match provider.get_mut("models") {
            None => {
                let mut array = Array::new();
                extend(&mut array, models);
                provider.insert("models", Value::Array(array));
            }
            Some(Value::Array(array)) => extend(array, models),
            Some(_) => return None,
        },
        _ => return None,
    }
    Some(())
}

/// Adds inline tables, each with the white space before it that the last one has.
fn extend(array: &mut Array, models: &[&ListedModel]) {
    let text = |raw: Option<&toml_edit::RawString>| raw.and_then(|raw| raw.as_str()).unwrap_or("").to_owned();
    let several = array.len() > 1;
    let mut before = String::new();
    let mut indent = None;
    if let Some(last) = array.len().checked_sub(1).and_then(|last| array.get_mut(last)) {
        let prefix = text(last.decor().prefix());
        // A comment before the last one is about the last one.
        let line = prefix.rfind('\n').and_then(|at| prefix.get(at..)).map(str::to_owned);
        indent = Some(line.unwrap_or(if several { prefix } else { " ".to_owned() }));
        // And one behind it too: it stays on its line.
        let suffix = text(last.decor().suffix());
        let tail = format!("{suffix}{}", text(Some(array.trailing())));
        let (comment, rest) = match tail.rfind('\n') {
            Some(at) if tail.contains('#') => tail.split_at(at),
            _ => ("", tail.as_str()),
        };
        before = comment.to_owned();
        let rest = rest.to_owned();
        if let Some(last) = array.len().checked_sub(1).and_then(|last| array.get_mut(last)) {
            last.decor_mut().set_suffix("");
        }
        array.set_trailing(rest);
    }
    for model in models {
        let mut value = Value::InlineTable(inline(model));
        value.decor_mut().set_prefix(format!("{before}{}", indent.as_deref().unwrap_or("")));
        before.clear();
        indent.get_or_insert_with(|| " ".to_owned());
        array.push_formatted(value);
    }
}

/// Line ends and a byte order mark as the old text has them.
fn like(old: &str, new: String) -> String {
    let lines = old.matches('\n').count();
    let new = if lines > 0 && old.matches("\r\n").count() == lines {
        new.replace("\r\n", "\n").replace('\n', "\r\n")
    } else {
        new
    };
    const MARK: char = '\u{feff}';
    if old.starts_with(MARK) && !new.starts_with(MARK) { format!("{MARK}{new}") } else { new }
}

/// What a file declares, without the places.
#[derive(Debug, PartialEq)]
struct Bare {
    providers: Vec<Provider>,
    routes: Vec<Route>,
    default_health: Option<HealthPolicy>,
}

fn bare(file: &ParsedFile) -> Bare {
    let provider = |it: &Arc<Provider>| {
        let mut it = Provider::clone(it);
        it.origin.line = 0;
        it.models.iter_mut().for_each(|model| model.line = 0);
        it
    };
    let route = |it: &Arc<Route>| {
        let mut it = Route::clone(it);
        it.origin.line = 0;
        it
    };
    // Objects are compared as they are named, not as they are ordered.
    let mut providers: Vec<Provider> = file.providers.iter().map(provider).collect();
    providers.sort_by(|a, b| a.name.cmp(&b.name));
    Bare {
        providers,
        routes: file.routes.iter().map(route).collect(),
        default_health: file.default_health.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str) -> ListedModel {
        ListedModel {
            id: id.into(),
            display_name: Some(format!("The {id}")),
            context_length: Some(8192),
            cost_in: Some(0.1),
            cost_out: None,
        }
    }

    fn plain(id: &str) -> ListedModel {
        let id = id.into();
        ListedModel { id, display_name: None, context_length: None, cost_in: None, cost_out: None }
    }

    fn edit(text: &str, provider: &str, models: &[ListedModel]) -> Result<Edited, EditError> {
        add_models(&"a.toml".into(), text, provider, &models.iter().collect::<Vec<_>>())
    }

    /// Every line of the old text stands in the new one, in the same order.
    fn keeps_lines(old: &str, new: &str) -> bool {
        let mut lines = new.lines();
        old.lines().all(|line| lines.any(|found| found == line))
    }

    #[test]
    fn models_are_added_in_the_style_that_is_there() {
        #[track_caller]
        fn check(old: &str, models: &[ListedModel], expected: &str) {
            let edited = edit(old, "x", models).unwrap();
            assert_eq!(edited.text, expected, "\n{}", edited.text);
            // A second time there is nothing to add.
            let again = edit(&edited.text, "x", models).unwrap();
            assert_eq!((again.text, again.added), (edited.text, Vec::new()));
        }
        // No model yet.
        check(
            "[providers.x] # ours\ntype = 'ollama'   # local\n",
            &[listed("b")],
            "[providers.x] # ours\ntype = 'ollama'   # local\n\n[[providers.x.models]]\nname = \"b\"\n\
             display_name = \"The b\"\ncontext_length = 8192\ncost_per_1m_input_tokens = 0.1\n",
        );
        // After the others, before whatever follows, comments where they were.
        check(
            "# top\n[providers.x]\ntype = \"ollama\"\n\n[[providers.x.models]]\n# the first\nname = \"a\"  # a\n\
             [providers.x.models.metadata]\nfamily = \"llama\"\n\n# ---- routes ----\n[[routes]]\n\
             models = \"x/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n# the end\n",
            &[plain("a"), plain("b"), plain("c")],
            "# top\n[providers.x]\ntype = \"ollama\"\n\n[[providers.x.models]]\n# the first\nname = \"a\"  # a\n\
             [providers.x.models.metadata]\nfamily = \"llama\"\n\n[[providers.x.models]]\nname = \"b\"\n\n\
             [[providers.x.models]]\nname = \"c\"\n\n# ---- routes ----\n[[routes]]\n\
             models = \"x/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n# the end\n",
        );
        // Inline, one to a line.
        check(
            "[providers]\nx.type = \"ollama\"\nx.models = [\n  # first\n  { name = \"a\" }, # a\n]\n",
            &[plain("b"), plain("c")],
            "[providers]\nx.type = \"ollama\"\nx.models = [\n  # first\n  { name = \"a\" }, # a\n  \
             { name = \"b\" },\n  { name = \"c\" },\n]\n",
        );
        check(
            "[providers.x]\ntype = \"ollama\"\nmodels = [\n  { name = \"z\" },\n  { name = \"a\" } # a\n]\n",
            &[plain("b"), plain("c")],
            "[providers.x]\ntype = \"ollama\"\nmodels = [\n  { name = \"z\" },\n  { name = \"a\" }, # a\n  \
             { name = \"b\" },\n  { name = \"c\" }\n]\n",
        );
        check(
            "providers.x = { type = \"ollama\", models = [{ name = \"a\" }] }\n",
            &[plain("b"), plain("c")],
            "providers.x = { type = \"ollama\", models = [{ name = \"a\" }, { name = \"b\" }, { name = \"c\" }] }\n",
        );
        check(
            "providers.x = { type = \"ollama\" }\n",
            &[plain("b"), plain("c")],
            "providers.x = { type = \"ollama\" , models = [{ name = \"b\" }, { name = \"c\" }] }\n",
        );
    }

    #[test]
    fn every_line_stays() {
        let check = |old: &str| {
            let edited = edit(old, "x", &[listed("new"), plain("newer")]).unwrap();
            assert!(keeps_lines(old, &edited.text), "{}", edited.text);
            assert_eq!(edited.added, ["new", "newer"]);
        };
        // Another provider's tables follow; tables out of order; a quoted name; names with odd characters.
        check(
            "[providers.x]\ntype=\"ollama\"\n[providers.y]\ntype=\"ollama\"\n[[providers.y.models]]\nname=\"a\"\n",
        );
        check(
            "[[routes]]\nmodels=\"x/a\"\npower_level=\"eco\"\nuser_tier=\"all\"\n\n[[providers.x.models]]\nname=\"a\"\n\n[providers.y]\ntype=\"ollama\"\n\n[providers.x]\ntype=\"ollama\"\n# z\n",
        );
        check(
            "[providers.\"x\"]\ntype = \"ollama\"\n[providers.\"x\".health]\ninterval = \"30s\"\n[providers.\"x\".discover]\n",
        );
        check("providers.x.type = \"ollama\"\nproviders.x.enabled = true\n");
        check("\u{feff}[providers.x]\ntype = \"ollama\"");
        check("[providers.x]\r\ntype = \"ollama\" # a\r\n\r\n# b\r\n[[routes]]\r\nmodels = \"x/new\"\r\npower_level = \"eco\"\r\nuser_tier = \"all\"\r\n".replace("x/new", "x/*").as_str());
        check(
            "[providers.x]\n\ttype = '''ollama'''\nconfig = { a = 1_000, b = 0x1F, c = 1979-05-27, d = [ 1,2 , 3, ] }\n",
        );
    }

    #[test]
    fn line_ends_stay_as_they_are() {
        let edited = edit("[providers.x]\r\ntype = \"ollama\"\r\n", "x", &[plain("a")]).unwrap();
        assert_eq!(
            edited.text,
            "[providers.x]\r\ntype = \"ollama\"\r\n\r\n[[providers.x.models]]\r\nname = \"a\"\r\n"
        );
    }

    #[test]
    fn what_cannot_be_declared_is_left_out_and_named() {
        let key = format!("sk-{}", "fake0Key1Value2".repeat(4));
        let edited = edit("[providers.x]\ntype = \"ollama\"\n", "x", &[plain(&key), plain("ok")]).unwrap();
        assert_eq!(edited.added, ["ok"]);
        assert_eq!(edited.left_out.len(), 1, "{edited:?}");
        assert!(!edited.text.contains(&key) && !edited.left_out[0].1.contains(&key));
    }

    #[test]
    fn what_cannot_be_edited_is_left_alone() {
        let check = |text: &str, provider: &str, expected: &str| {
            let error = edit(text, provider, &[plain("m")]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("[providers.x]\ntype = \"olama\"\n", "x", "a.toml:2: ");
        check("[providers.x\n", "x", "a.toml:1: ");
        check("[providers.x]\ntype = \"ollama\"\n", "y", "a.toml does not declare `y`");
        let long = format!("[providers.x]\ntype = \"ollama\"\n#{}\n", "-".repeat(MAX_FILE - 45));
        check(&long, "x", "a.toml would grow over");
    }

    /// Manifests in every style; `x` is what is added to.
    const STYLES: &[&str] = &[
        "# a\n[providers.x]\ntype = \"ollama\"\n\n[[routes]] # r\nmodels = \"x/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n",
        "[[providers.x.models]] # m\nname = \"a\"\n[providers.x]\ntype = \"ollama\"\n[providers.x.discover]\n# end\n",
        "[providers]\nx = { type = \"ollama\", models = [ { name = \"a\" }, ] }\ny = { type = \"ollama\" }\n",
        "providers.x.type = \"ollama\"\nproviders.x.models = [\n\t{ name = \"a\" }, # a\n\t# b\n]\n",
    ];

    proptest::proptest! {
        /// Whatever a provider lists is declared exactly so, or left out with a reason, and a second time adds nothing.
        #[test]
        fn any_list_is_declared_or_left_out(
            style in 0..STYLES.len(),
            names in proptest::collection::vec("\\PC{1,30}|[a-z\"'\\\\#\n\t\u{7f}-\u{9f}.=\\[\\]]{1,12}", 0..6),
            tokens in proptest::option::of(proptest::num::u32::ANY),
            cost in proptest::option::of(0.0..1_000_000.0),
        ) {
            let models: Vec<ListedModel> = names
                .iter()
                .map(|name| ListedModel { context_length: tokens, cost_in: cost, display_name: Some(name.clone()), ..plain(name) })
                .collect();
            let edited = edit(STYLES[style], "x", &models).unwrap();
            let distinct: BTreeSet<&String> = names.iter().filter(|name| *name != "a").collect();
            let done = edited.added.len() + edited.left_out.len();
            let had = usize::from(style > 0 && names.iter().any(|name| name == "a"));
            let distinct = distinct.len() + usize::from(names.iter().any(|name| name == "a")) - had;
            proptest::prop_assert_eq!(done, distinct);
            let again = edit(&edited.text, "x", &models).unwrap();
            proptest::prop_assert_eq!(&again.text, &edited.text);
            proptest::prop_assert!(again.added.is_empty());
            let file = manifest::parse(&"a.toml".into(), &edited.text);
            proptest::prop_assert!(file.diagnostics.is_empty(), "{:?}", file.diagnostics);
        }
    }
}
