/*
 * From 0.1.0 to 0.2.0: what has been added to or changed in the numbered parts since 0.1.0 was tagged.
 * tests/e2e/upgrade compares an upgraded database with a new one, object by object.
 */
