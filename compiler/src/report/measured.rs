//! What a run measured, beside what its plan predicted.

use serde_json::{Value, json};

use super::mib;

/// The figures of `omex run --json` that a plan predicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub rss_peak_bytes: u64,
    /// As its plan states it for all runs.
    pub rss_peak_stated_bytes: u64,
    /// As its plan predicted it for that run.
    pub rss_peak_predicted_bytes: u64,
    pub bytes_read: Option<u64>,
    pub decode_tps: Option<f64>,
}

impl Measured {
    /// # Errors
    ///
    /// Text that is no report of a run.
    pub fn parse(text: &str) -> Result<Measured, String> {
        let report: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let bytes = |field: &str| {
            let bytes = report[field].as_u64();
            bytes.ok_or_else(|| format!("{field} is missing"))
        };
        Ok(Measured {
            rss_peak_bytes: bytes("rss_peak_measured_bytes")?,
            rss_peak_stated_bytes: bytes("rss_peak_stated_bytes")?,
            rss_peak_predicted_bytes: bytes("rss_peak_predicted_bytes")?,
            bytes_read: report["bytes_read"].as_u64(),
            decode_tps: report["decode_tps"].as_f64(),
        })
    }

    pub(super) fn text(&self) -> String {
        let (seen, predicted_bytes) = (self.rss_peak_bytes, self.rss_peak_predicted_bytes);
        let verdict = if seen <= predicted_bytes {
            format!("{} below", mib(predicted_bytes - seen))
        } else {
            format!("{} ABOVE", mib(seen - predicted_bytes))
        };
        let mut text = format!(
            "\nmeasured: rss peak {} of {} predicted, {verdict}",
            mib(seen),
            mib(predicted_bytes)
        );
        if let Some(bytes) = self.bytes_read {
            text += &format!("; {} read", mib(bytes));
        }
        if let Some(tps) = self.decode_tps {
            text += &format!("; {tps:.1} tokens/s");
        }
        text + "\n"
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "rss_peak_bytes": self.rss_peak_bytes,
            "rss_peak_predicted_bytes": self.rss_peak_predicted_bytes,
            "within_prediction": self.rss_peak_bytes <= self.rss_peak_predicted_bytes,
            "bytes_read": self.bytes_read,
            "decode_tps": self.decode_tps,
        })
    }
}
