//! Plots of figures, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::figures::Spread;

/// Draws a bar chart: the median of each label with a line from minimum to maximum. The axis is linear and
/// starts at zero.
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

/// A named line with its points from left to right.
pub type Line = (String, Vec<(f64, Spread)>);

/// Draws plots below each other, each with a title and lines of medians, with minimum and maximum at each
/// point. Both axes are logarithmic. `x_label` formats positions on the x axis.
pub fn lines(
    path: &Path,
    x_label: impl Fn(f64) -> String,
    unit: (&str, &str),
    plots: &[(&str, Vec<Line>)],
) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let root = SVGBackend::new(path, (860, 440 * plots.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((plots.len(), 1));
    for (area, (title, lines)) in areas.iter().zip(plots) {
        draw_lines(area, title, &x_label, unit, lines)?;
    }
    root.present()?;
    Ok(())
}

/// Distinguishable with colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(0, 158, 115),
];

fn draw_lines(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    x_label: impl Fn(f64) -> String,
    (x_unit, y_unit): (&str, &str),
    lines: &[Line],
) -> anyhow::Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let left = least(&mut points().map(|(at, _)| *at));
    let right = most(&mut points().map(|(at, _)| *at));
    let bottom = least(&mut points().map(|(_, spread)| spread.min));
    let top = most(&mut points().map(|(_, spread)| spread.max));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (left * 0.8..right * 1.5).log_scale().base(2.0),
            (bottom * 0.8..top * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(x_unit)
        .y_desc(y_unit)
        .x_label_formatter(&|at| x_label(*at))
        .draw()?;
    let colours = COLOURS.iter().cycle();
    for (index, ((name, points), &colour)) in lines.iter().zip(colours).enumerate() {
        // Shifts each line to the right, so that the ranges do not overlap.
        let beside = 1.06_f64.powi(index as i32);
        let points: Vec<_> = points
            .iter()
            .map(|(at, spread)| (at * beside, *spread))
            .collect();
        let medians = points.iter().map(|(at, spread)| (*at, spread.median));
        chart
            .draw_series([PathElement::new(
                medians.collect::<Vec<_>>(),
                colour.stroke_width(2),
            )])?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(points.iter().map(|(at, spread)| {
            PathElement::new(
                [(*at, spread.min), (*at, spread.max)],
                colour.stroke_width(1),
            )
        }))?;
        chart.draw_series(
            points
                .iter()
                .map(|(at, spread)| Circle::new((*at, spread.median), 3, colour.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.4))
        .draw()?;
    Ok(())
}
