//! Aligned columns, truncated to the width of a terminal, and never elsewhere.

use std::io::{IsTerminal, stdout};

use anyhow::Result;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Row, Table};
use terminal_size::{Width, terminal_size_of};

use crate::{failure, output};

/// A table with headings.
pub struct Columns {
    table: Table,
    empty: &'static str,
}

impl Columns {
    /// A table with these headings, and what to print when it has no rows.
    pub fn new(headings: &[&str], empty: &'static str) -> Self {
        let mut table = Table::new();
        let mut header = Row::from(headings.iter().map(|heading| heading.to_uppercase()));
        header.max_height(1);
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_header(header);
        match terminal_width() {
            Some(width) => table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        Self { table, empty }
    }

    /// Aligns these columns to the right, for numbers.
    pub fn right(mut self, columns: &[usize]) -> Self {
        for column in columns {
            if let Some(column) = self.table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    /// Never truncates this column: part of a GUID is useless.
    pub fn whole(mut self, column: usize) -> Self {
        if let Some(column) = self.table.column_mut(column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        self
    }

    /// Adds a row of one line.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row = Row::from(cells.into_iter().map(|cell| failure::printable(&cell)));
        row.max_height(1);
        self.table.add_row(row);
    }

    /// The table as lines.
    pub fn text(&self) -> String {
        self.table
            .lines()
            .map(|line| {
                let line = line.trim_end();
                format!("{}\n", line.strip_prefix(' ').unwrap_or(line))
            })
            .collect()
    }

    /// Prints the table, or the text for an empty one.
    pub fn print(self) -> Result<()> {
        if self.table.row_count() == 0 {
            return output::line(self.empty);
        }
        output::text(&self.text())
    }
}

fn terminal_width() -> Option<u16> {
    if !stdout().is_terminal() {
        return None;
    }
    let (Width(width), _) = terminal_size_of(stdout())?;
    Some(width).filter(|width| *width > 0)
}
