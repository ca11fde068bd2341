//! The cells of a step's matrix, and the placeholders that they fill in.

use std::collections::{BTreeMap, BTreeSet};

use super::InvalidPipeline;
use super::file::StepTable;

/// Maximum number of cells in a matrix.
const MAX_CELLS: usize = 256;

/// The values of one cell, by key.
pub(super) type Cell<'a> = BTreeMap<&'a str, &'a str>;

/// The cells of a step's matrix.
///
/// A step without a matrix has one cell without values.
pub(super) fn cells(step: &StepTable) -> Result<Vec<Cell<'_>>, InvalidPipeline> {
    let invalid = |reason: String| InvalidPipeline::step(&step.name, "matrix", reason);
    let mut cells = vec![Cell::new()];
    for (key, values) in &step.matrix {
        check_values(key, values).map_err(invalid)?;
        if cells.len() * values.len() > MAX_CELLS {
            return Err(invalid(format!("it has more than {MAX_CELLS} cells")));
        }
        let product = cells.iter().flat_map(|cell| {
            values.iter().map(move |value| {
                let mut cell = cell.clone();
                cell.insert(key, value);
                cell
            })
        });
        cells = product.collect();
    }
    let mut names = BTreeSet::new();
    for cell in &cells {
        let name = cell_name(&step.name, cell);
        if names.contains(&name) {
            return Err(invalid(format!("two cells have the name {name:?}")));
        }
        names.insert(name);
    }
    Ok(cells)
}

fn check_values(key: &str, values: &[String]) -> Result<(), String> {
    if key.chars().any(char::is_control) {
        return Err(format!("{key:?} has a control character"));
    }
    if values.is_empty() {
        return Err(format!("{key} has no values"));
    }
    for (index, value) in values.iter().enumerate() {
        if value.chars().any(char::is_control) {
            return Err(format!("{key}: {value:?} has a control character"));
        }
        if values[..index].contains(value) {
            return Err(format!("{key} has {value:?} twice"));
        }
    }
    Ok(())
}

pub(super) fn cell_name(step: &str, cell: &Cell<'_>) -> String {
    if cell.is_empty() {
        return step.to_owned();
    }
    let values: Vec<_> = cell.iter().map(|(key, v)| format!("{key}={v}")).collect();
    format!("{step} ({})", values.join(", "))
}

/// `text` with the cell's value in place of each `${{ matrix.KEY }}`.
pub(super) fn fill(text: &str, cell: &Cell<'_>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        let Some((name, after)) = after.split_once("}}") else {
            return Err("`${{` without `}}`".into());
        };
        let name = name.trim();
        let value = name.strip_prefix("matrix.").and_then(|key| cell.get(key));
        let Some(value) = value else {
            return Err(format!(
                "cannot fill in {name:?}: only `matrix.KEY` is replaced, with a KEY of the step's matrix"
            ));
        };
        filled.push_str(before);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}
