//! A picture of the ratios to plain routing.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::Row;

const COLOURS: [RGBColor; 5] = [
    RGBColor(120, 120, 120),
    RGBColor(200, 170, 60),
    RGBColor(90, 150, 210),
    RGBColor(60, 160, 110),
    RGBColor(190, 70, 90),
];
/// Ratios above this are cut off, with their value beside the bar.
const TOP: f64 = 2.0;
/// Room above the bars for the measures' names, and beside them for the legend.
const ABOVE: f64 = 0.25;
const BESIDE: f64 = 4.0;

/// Draws one panel for each underlay: a group of bars for each measure.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, rows: &[Row]) -> Result<()> {
    let mut underlays: Vec<&str> = Vec::new();
    let mut measures: Vec<&str> = Vec::new();
    let mut variants: Vec<&str> = Vec::new();
    let keep = |list: &mut Vec<&'static str>, what| {
        if !list.contains(&what) {
            list.push(what);
        }
    };
    for r in rows.iter().filter(|r| r.variant != "plain") {
        keep(&mut underlays, r.underlay);
        keep(&mut measures, r.measure);
        keep(&mut variants, r.variant);
    }
    let root = SVGBackend::new(path, (1200, 330 * underlays.len() as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(error)?;
    for (panel, underlay) in root.split_evenly((underlays.len(), 1)).iter().zip(&underlays) {
        let width = variants.len() as f64 + 1.0;
        let right = width * measures.len() as f64;
        let mut chart = ChartBuilder::on(panel)
            .caption(
                format!("{underlay} underlay: ratio to plain routing (less is better for CPU and round trip)"),
                ("sans-serif", 16),
            )
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..right + BESIDE, 0.0..TOP + ABOVE)
            .map_err(error)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().x_labels(0).y_labels(9).draw().map_err(error)?;
        let one = [(0.0, 1.0), (right, 1.0)];
        chart.draw_series(LineSeries::new(one, BLACK)).map_err(error)?;
        for (v, variant) in variants.iter().enumerate() {
            let colour = COLOURS[v % COLOURS.len()];
            let mut bars = Vec::new();
            let mut texts = Vec::new();
            for (m, measure) in measures.iter().enumerate() {
                let key = (*underlay, *measure, *variant);
                let found = rows.iter().find(|r| (r.underlay, r.measure, r.variant) == key);
                let Some(row) = found else { continue };
                let left = m as f64 * width + v as f64 + 0.5;
                let height = row.ratio.min(TOP);
                bars.push(Rectangle::new([(left, 0.0), (left + 0.9, height)], colour.filled()));
                let style = ("sans-serif", 11).into_font();
                texts.push(Text::new(format!("{:.2}", row.ratio), (left, height + 0.09), style));
            }
            chart.draw_series(bars).map_err(error)?.label(*variant).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled())
            });
            chart.draw_series(texts).map_err(error)?;
        }
        for (m, measure) in measures.iter().enumerate() {
            let at = (m as f64 * width + 0.5, TOP + ABOVE - 0.05);
            let style = ("sans-serif", 13).into_font();
            let text = Text::new(measure.replace('_', " "), at, style);
            chart.draw_series([text]).map_err(error)?;
        }
        let mut legend = chart.configure_series_labels();
        let legend = legend.position(SeriesLabelPosition::MiddleRight);
        legend.background_style(WHITE.mix(0.8)).border_style(BLACK).draw().map_err(error)?;
    }
    root.present().map_err(error)
}

fn error<E: std::fmt::Display>(e: E) -> anyhow::Error {
    anyhow!("{e}")
}
