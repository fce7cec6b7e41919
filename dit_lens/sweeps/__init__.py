"""Many runs planned as one: any intervention over any grid."""
