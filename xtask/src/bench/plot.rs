//! A plot of a scenario's arms: bars, a panel for each figure, as SVG.

use std::fmt::Write;

use super::{
    found::{ArmFound, Series},
    rounds::spread,
};

const WIDTH: usize = 760;
const NAMES: usize = 190;
/// Room for the figure behind a bar.
const FIGURE: usize = 70;
const BAR: usize = 18;
const GAP: usize = 6;
const TITLE: usize = 34;

/// Bars of the medians, with a line from the least to the greatest. Empty panels (no arm has the figure) are left out.
pub fn svg(title: &str, arms: &[ArmFound]) -> String {
    let panels: Vec<&Series> = arms.first().map_or(&[][..], |arm| &arm.series).iter().collect();
    let rows = |what: &str| -> Vec<(&str, &Series)> {
        let of = |arm: &'_ ArmFound| arm.series.iter().position(|series| series.what == what);
        arms.iter()
            .filter_map(|arm| Some((arm.name, arm.series.get(of(arm)?)?)))
            .filter(|(_, series)| !series.values.is_empty())
            .collect()
    };
    let mut body = String::new();
    let mut y = TITLE;
    for panel in panels {
        let rows = rows(panel.what);
        let greatest = rows.iter().map(|(_, series)| spread(&series.values).greatest);
        let greatest = greatest.fold(0.0, f64::max);
        if greatest <= 0.0 {
            continue;
        }
        let scale = (WIDTH - NAMES - FIGURE) as f64 / greatest;
        y += TITLE;
        text(
            &mut body,
            10,
            y - 10,
            "font-weight=\"bold\"",
            &format!("{}, {}", panel.what, panel.unit),
        );
        for (name, series) in rows {
            let found = spread(&series.values);
            let at = |value: f64| NAMES as f64 + value.max(0.0) * scale;
            let colour = if name.starts_with("weft") { "#2a7fb8" } else { "#9aa5ad" };
            text(&mut body, 10, y + BAR - 5, "", name);
            let _infallible = writeln!(
                body,
                "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
                 <path d=\"M{:.1} {m}H{:.1}\" stroke=\"#333\"/>",
                at(found.median) - NAMES as f64,
                at(found.least),
                at(found.greatest),
                m = y + BAR / 2,
            );
            let behind = at(found.greatest) as usize + 6;
            text(&mut body, behind, y + BAR - 5, "", &figure(found.median));
            y += BAR + GAP;
        }
    }
    let height = y + GAP;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n{body}</svg>\n",
        escaped(title)
    )
}

fn text(body: &mut String, x: usize, y: usize, attributes: &str, text: &str) {
    let _infallible = writeln!(body, "<text x=\"{x}\" y=\"{y}\" {attributes}>{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: &'static str, values: &[f64]) -> ArmFound {
        let series = |what, values: &[f64]| Series {
            what,
            unit: "µs",
            values: values.to_vec(),
        };
        ArmFound {
            name,
            series: vec![series("CPU", values), series("nothing", &[])],
        }
    }

    #[test]
    fn bars_are_as_long_as_the_medians_and_empty_panels_are_left_out() {
        let drawn = svg("A & B", &[arm("weft", &[50.0]), arm("peer", &[90.0, 100.0, 95.0])]);
        assert!(drawn.contains("A &amp; B"), "{drawn}");
        assert!(
            drawn.contains("width=\"250.0\"") && drawn.contains("width=\"475.0\""),
            "{drawn}"
        );
        assert!(
            drawn.contains(">95.0<") && drawn.contains("CPU, µs") && !drawn.contains("nothing"),
            "{drawn}"
        );
    }
}
