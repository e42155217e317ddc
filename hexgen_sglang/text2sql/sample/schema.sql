CREATE TABLE district (
    district_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    population INTEGER NOT NULL
);
CREATE TABLE station (
    station_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    district_id INTEGER NOT NULL REFERENCES district (district_id),
    docks INTEGER NOT NULL,
    opened_on TEXT NOT NULL
);
CREATE TABLE bike (
    bike_id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('city', 'electric', 'cargo')),
    bought_on TEXT NOT NULL,
    price REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('in service', 'in repair', 'retired'))
);
CREATE TABLE plan (
    plan_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    monthly_fee REAL NOT NULL,
    free_minutes INTEGER NOT NULL
);
CREATE TABLE member (
    member_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    birth_year INTEGER NOT NULL,
    joined_on TEXT NOT NULL,
    plan_id INTEGER NOT NULL REFERENCES plan (plan_id),
    district_id INTEGER NOT NULL REFERENCES district (district_id)
);
CREATE TABLE trip (
    trip_id INTEGER PRIMARY KEY,
    member_id INTEGER NOT NULL REFERENCES member (member_id),
    bike_id INTEGER NOT NULL REFERENCES bike (bike_id),
    start_station_id INTEGER NOT NULL REFERENCES station (station_id),
    end_station_id INTEGER NOT NULL REFERENCES station (station_id),
    started_at TEXT NOT NULL,
    minutes INTEGER NOT NULL,
    cost REAL NOT NULL
);
CREATE TABLE mechanic (
    mechanic_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    hourly_wage REAL NOT NULL
);
CREATE TABLE repair (
    repair_id INTEGER PRIMARY KEY,
    bike_id INTEGER NOT NULL REFERENCES bike (bike_id),
    mechanic_id INTEGER NOT NULL REFERENCES mechanic (mechanic_id),
    problem TEXT NOT NULL,
    opened_on TEXT NOT NULL,
    closed_on TEXT,
    cost REAL
);
CREATE INDEX trip_by_member ON trip (member_id);
CREATE INDEX trip_by_bike ON trip (bike_id);
CREATE INDEX repair_by_bike ON repair (bike_id);
