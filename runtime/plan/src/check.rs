//! Placeholder until the checks land.
use crate::plan::Plan;

#[derive(Debug)]
pub struct CheckedPlan(Plan);

pub fn check(plan: Plan) -> Result<CheckedPlan, String> {
    Ok(CheckedPlan(plan))
}

impl CheckedPlan {
    pub fn plan(&self) -> &Plan {
        &self.0
    }
}
