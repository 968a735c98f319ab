//! Pictures of figures, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::figures::Spread;

/// A bar for each label with its least and most, on one linear axis from zero.
pub fn bars(path: &Path, title: &str, unit: &str, bars: &[(&str, Spread)]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let top = bars
        .iter()
        .map(|(_, spread)| spread.max)
        .fold(0.0, f64::max)
        * 1.1;
    let root = SVGBackend::new(path, (760, 60 * bars.len() as u32 + 120)).into_drawing_area();
    root.fill(&WHITE)?;
    let labels: Vec<&str> = bars.iter().map(|(label, _)| *label).collect();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(220)
        .build_cartesian_2d(0.0..top, (0..bars.len()).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(unit)
        .y_label_formatter(&|at| match at {
            SegmentValue::CenterOf(index) => labels.get(*index).copied().unwrap_or("").to_owned(),
            _ => String::new(),
        })
        .draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(at, (_, spread))| {
        let mut bar = Rectangle::new(
            [
                (0.0, SegmentValue::Exact(at)),
                (spread.median, SegmentValue::Exact(at + 1)),
            ],
            BLUE.mix(0.5).filled(),
        );
        bar.set_margin(12, 12, 0, 0);
        bar
    }))?;
    chart.draw_series(bars.iter().enumerate().map(|(at, (_, spread))| {
        let line = vec![
            (spread.min, SegmentValue::CenterOf(at)),
            (spread.max, SegmentValue::CenterOf(at)),
        ];
        PathElement::new(line, BLACK.stroke_width(2))
    }))?;
    root.present()?;
    Ok(())
}
