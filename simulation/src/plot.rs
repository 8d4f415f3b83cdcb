//! A picture of how state and messages grow with the number of Clients.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::scenario::Sample;

type Value = fn(&Sample) -> f64;

/// Draws three curves over the number of Clients into an SVG file.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, title: &str, samples: &[Sample]) -> Result<()> {
    let root = SVGBackend::new(path, (960, 360)).into_drawing_area();
    root.fill(&WHITE).map_err(error)?;
    let root = root.titled(title, ("sans-serif", 18)).map_err(error)?;
    let panels = root.split_evenly((1, 3));
    let curves: [(&str, Value, RGBColor); 3] = [
        ("entries per node", |s| s.entries_per_node, BLUE),
        ("entries per Server", |s| s.entries_per_server, RED),
        ("control messages per move", |s| s.messages_per_move, GREEN),
    ];
    for (panel, (name, value, colour)) in panels.iter().zip(curves) {
        let right = samples.iter().map(|s| s.clients).max().unwrap_or(1);
        let top = samples.iter().map(value).fold(0.0, f64::max).max(1.0) * 1.1;
        let mut chart = ChartBuilder::on(panel)
            .caption(name, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0..right, 0.0..top)
            .map_err(error)?;
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc("Clients").x_labels(5).y_labels(6).draw().map_err(error)?;
        let points: Vec<(usize, f64)> = samples.iter().map(|s| (s.clients, value(s))).collect();
        chart.draw_series(LineSeries::new(points.clone(), &colour)).map_err(error)?;
        let dots = points.iter().map(|p| Circle::new(*p, 3, colour.filled()));
        chart.draw_series(dots).map_err(error)?;
    }
    root.present().map_err(error)
}

fn error<E: std::fmt::Display>(e: E) -> anyhow::Error {
    anyhow!("{e}")
}
