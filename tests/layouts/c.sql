-- Another program's table: a number for an id.
CREATE TABLE llm_providers (id serial PRIMARY KEY, name varchar(100) UNIQUE, api_key text);
INSERT INTO llm_providers (name, api_key) VALUES ('one', 'x');
