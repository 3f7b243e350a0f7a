"""What people see of a report: tables, charts, contact sheets."""
