//! The privacy curve as a picture.

use anyhow::{Result, anyhow};
use falaj_core::dp::pld::Schedule;
use plotters::prelude::*;
use std::path::Path;

/// Points of the curve.
const POINTS: u32 = 120;
/// The curve is drawn down to this delta.
const DELTA_MIN: f64 = 1e-12;
/// Width and height.
const SIZE: (u32, u32) = (900, 540);

/// Draws delta, on a logarithmic scale, over epsilon.
///
/// # Errors
/// When there is no guarantee to draw, or the file cannot be written.
pub(crate) fn curve(file: &Path, schedule: &Schedule, title: &str) -> Result<()> {
    let end = schedule.epsilon(DELTA_MIN)?.value();
    if !(end.is_finite() && end > 0.0) {
        return Err(anyhow!("there is no curve to draw: epsilon at delta {DELTA_MIN:e} is {end}"));
    }
    let points = (0..=POINTS)
        .map(|i| {
            let epsilon = end * f64::from(i) / f64::from(POINTS);
            Ok((epsilon, schedule.delta(epsilon)?.upper.max(DELTA_MIN)))
        })
        .collect::<Result<Vec<_>>>()?;
    let broken = |e: &dyn std::fmt::Display| anyhow!("drawing {}: {e}", file.display());
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|e| broken(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..end, (DELTA_MIN..1.0).log_scale())
        .map_err(|e| broken(&e))?;
    chart
        .configure_mesh()
        .x_desc("epsilon")
        .y_desc("delta")
        .y_label_formatter(&|delta| format!("{delta:.0e}"))
        .draw()
        .map_err(|e| broken(&e))?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2))).map_err(|e| broken(&e))?;
    area.present().map_err(|e| broken(&e))
}
