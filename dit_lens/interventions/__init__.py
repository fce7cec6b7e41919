"""Interventions: functions applied at sites."""
