//! The tables of a report as files that other tools read: CSV, JSON Lines and Parquet. Names of columns are those of
//! the JSON and stay English; cells are as the JSON has them, times in UTC.
//!
//! A CSV file may be opened in a spreadsheet, which runs cells that look like formulas. Such cells get an apostrophe
//! in front ([`crate::text::spreadsheet`]); the other two formats have every cell as it is.

use crate::source::{Cell, Report, Table};
use falaj_core::canon::Canon;
use parquet::{
    basic::{LogicalType, Repetition, Type as Physical},
    column::writer::ColumnWriter,
    data_type::{ByteArray, ByteArrayType, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use std::sync::Arc;

/// Why a table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// As CSV.
    #[error("a table could not be written as CSV")]
    Csv(#[source] csv::Error),
    /// As Parquet.
    #[error("a table could not be written as Parquet")]
    Parquet(#[from] ParquetError),
}

/// The tables of a report, each with the name of its file without ending: `E1.parties`.
pub fn all(report: &Report) -> impl Iterator<Item = (String, &Table)> {
    let tables = report.sections.iter().flat_map(|s| s.tables.iter().map(move |t| (s, t)));
    tables.map(|(section, table)| (format!("{}.{}", section.id, table.name), table))
}

/// As CSV (RFC 4180, UTF-8, a header line).
///
/// # Errors
/// [`TableError::Csv`].
pub fn csv(table: &Table) -> Result<Vec<u8>, TableError> {
    let mut writer =
        csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(&table.columns).map_err(TableError::Csv)?;
    for row in &table.rows {
        let cells = row.iter().map(|cell| match cell {
            Cell::Text(text) => crate::text::spreadsheet(text),
            other => other.to_string(),
        });
        writer.write_record(cells).map_err(TableError::Csv)?;
    }
    writer.into_inner().map_err(|e| TableError::Csv(e.into_error().into()))
}

/// As JSON Lines: an object a row, in canonical form.
#[must_use]
pub fn jsonl(table: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    for row in &table.rows {
        let cells = row.iter().map(|cell| match cell {
            Cell::Int(n) => Canon::Int(*n),
            Cell::Bool(b) => Canon::Bool(*b),
            Cell::Text(text) => Canon::Text(text.clone()),
        });
        let members = table.columns.iter().map(String::as_str).zip(cells);
        out.extend(Canon::map(members).to_bytes());
        out.push(b'\n');
    }
    out
}

/// As Parquet: a column of whole numbers is INT64, every other is text.
///
/// # Errors
/// [`TableError::Parquet`].
pub fn parquet(table: &Table) -> Result<Vec<u8>, TableError> {
    let numbers: Vec<bool> = (0..table.columns.len())
        .map(|i| {
            !table.rows.is_empty()
                && table.rows.iter().all(|r| matches!(r.get(i), Some(Cell::Int(_))))
        })
        .collect();
    let fields = table.columns.iter().zip(&numbers).map(|(name, number)| {
        let field = if *number {
            Type::primitive_type_builder(name, Physical::INT64)
        } else {
            Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
        };
        field.with_repetition(Repetition::REQUIRED).build().map(Arc::new)
    });
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Type::group_type_builder(&table.name).with_fields(fields).build()?);
    let properties = WriterProperties::builder()
        .set_created_by(format!("falaj-report {}", env!("CARGO_PKG_VERSION")));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
    let mut rows = writer.next_row_group()?;
    let mut i = 0;
    while let Some(mut column) = rows.next_column()? {
        let cells = table.rows.iter().filter_map(|row| row.get(i));
        if matches!(column.untyped(), ColumnWriter::Int64ColumnWriter(_)) {
            let cells = cells.map(|cell| if let Cell::Int(n) = cell { *n } else { 0 });
            let cells: Vec<i64> = cells.collect();
            column.typed::<Int64Type>().write_batch(&cells, None, None)?;
        } else {
            let cells = cells.map(|cell| ByteArray::from(cell.to_string().into_bytes()));
            let cells: Vec<ByteArray> = cells.collect();
            column.typed::<ByteArrayType>().write_batch(&cells, None, None)?;
        }
        column.close()?;
        i += 1;
    }
    rows.close()?;
    Ok(writer.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::{
        file::reader::{FileReader as _, SerializedFileReader},
        record::RowAccessor as _,
    };

    fn table() -> Table {
        let rows = [("=1+1", 7), ("plain, \"quoted\"\nlines", 8), ("-0.5", -9)];
        Table {
            name: "t".into(),
            columns: vec!["detail".into(), "index".into()],
            rows: rows.map(|(t, n)| vec![Cell::Text(t.into()), Cell::Int(n)]).into(),
            more: 0,
        }
    }

    #[test]
    fn a_csv_cell_that_is_a_formula_is_written_as_text() {
        let text = String::from_utf8(csv(&table()).expect("csv")).expect("utf-8");
        let want = "detail,index\r\n'=1+1,7\r\n\"plain, \"\"quoted\"\"\nlines\",8\r\n-0.5,-9\r\n";
        assert_eq!(text, want);
    }

    #[test]
    fn json_lines_have_every_cell_as_it_is() {
        let text = String::from_utf8(jsonl(&table())).expect("utf-8");
        assert_eq!(text.lines().next(), Some("{\"detail\":\"=1+1\",\"index\":7}"));
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn parquet_reads_back_what_was_written() {
        let bytes = bytes::Bytes::from(parquet(&table()).expect("parquet"));
        let reader = SerializedFileReader::new(bytes).expect("a file");
        let rows: Vec<_> =
            reader.get_row_iter(None).expect("rows").map(|r| r.expect("row")).collect();
        let read: Vec<_> = rows
            .iter()
            .map(|r| (r.get_string(0).expect("text").as_str(), r.get_long(1).expect("number")))
            .collect();
        assert_eq!(read, [("=1+1", 7), ("plain, \"quoted\"\nlines", 8), ("-0.5", -9)]);
    }
}
