package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/goccy/go-yaml"
)

// onlyParse are wrong files of the golden page that a JSON Schema cannot refuse:
// the mistake is in the notation, or between two values.
var onlyParse = []string{"alias", "bad_layers", "control_character", "directive", "hook_pattern_open", "huge_size",
	"inflight_below_batch", "kafka_and_url_by_value", "kafka_certificate_without_key", "kafka_files_without_tls",
	"kafka_login_without_sasl", "kafka_more_in_sync_than_replicas", "kafka_password_in_the_clear",
	"kafka_retain_more_than_all", "kafka_sasl_without_login", "merge_key", "nats_certificate_without_key",
	"nats_files_without_tls", "nats_user_and_key", "one_folder_for_two", "size_too_large",
	"password_in_broken_line", "syntax", "tabs", "two_documents", "written_twice", "written_twice_as_label"}

// An editor must not call a file right that sonde validate refuses, as far as a
// schema can tell, nor refuse an example.
func TestTheSchemaRefusesTheWrongFilesAndNoExample(t *testing.T) {
	schema := readSchema(t)
	page, err := os.ReadFile(wrongPage)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, c := range wrongCase.FindAllStringSubmatch(string(page), -1) {
		if slices.Contains(onlyParse, c[1]) {
			continue
		}
		if err := validateText(schema, c[2]); err == nil {
			t.Errorf("%s: the schema lets it pass", c[1])
		} else {
			refused++
		}
	}
	if refused < 45 {
		t.Errorf("the schema refused %d files; want at least 45", refused)
	}
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no examples: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := validateText(schema, string(text)); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, text := range []string{"agent:\n", "policy: {rules: []}", "materializer: {commit_bytes: 1.5 GiB}",
		"policy: {rules: [{hooks: ['*'], layers: [0, '2-4'], priority: -1}]}", "http: {listen: ''}",
		"http: {listen: '[::1]:65535'}", "bus: {url: 'tls://broker:4222', user: sonde}", "bus: {url: ''}"} {
		if _, err := Parse("right.yaml", []byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if err := validateText(schema, text); err != nil {
			t.Errorf("%s: the schema says %v", text, err)
		}
	}
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	page, err := os.ReadFile("../CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	text, err := JSONSchema(string(page))
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func validateText(schema map[string]any, text string) error {
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	var value any
	if err := json.Unmarshal(asJSON, &value); err != nil {
		return err
	}
	if value == nil {
		return nil
	}
	return validate(schema, value, "the file")
}

// validate knows the words of JSON Schema that JSONSchema writes, and panics at another.
func validate(schema map[string]any, value any, at string) error {
	for word, arg := range schema {
		var err error
		switch word {
		case "$schema", "title", "description", "properties":
		case "additionalProperties", "required", "dependentSchemas":
			err = validateObject(schema, word, value, at)
		case "type":
			if !isOneOf(arg, value) {
				err = fmt.Errorf("%s: %v is no %v", at, value, arg)
			}
		case "enum":
			if !slices.Contains(arg.([]any), value) {
				err = fmt.Errorf("%s: %v is not in %v", at, value, arg)
			}
		case "minimum", "maximum":
			n, ok := value.(float64)
			if limit := arg.(float64); ok && (word == "minimum" && n < limit || word == "maximum" && n > limit) {
				err = fmt.Errorf("%s: %v is past %v", at, value, limit)
			}
		case "pattern":
			if s, ok := value.(string); ok && !regexp.MustCompile(arg.(string)).MatchString(s) {
				err = fmt.Errorf("%s: %q does not match %v", at, s, arg)
			}
		case "minItems":
			if list, ok := value.([]any); ok && len(list) < int(arg.(float64)) {
				err = fmt.Errorf("%s: too few items", at)
			}
		case "items":
			list, _ := value.([]any)
			for i, item := range list {
				if err == nil {
					err = validate(arg.(map[string]any), item, fmt.Sprintf("%s[%d]", at, i))
				}
			}
		case "allOf", "anyOf":
			err = validateSome(word, arg.([]any), value, at)
		case "not":
			if validate(arg.(map[string]any), value, at) == nil {
				err = fmt.Errorf("%s: %v must not be", at, arg)
			}
		default:
			panic("BUG: the test does not know the word " + word)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func validateSome(word string, schemas []any, value any, at string) error {
	var first error
	passed := 0
	for _, s := range schemas {
		if err := validate(s.(map[string]any), value, at); err == nil {
			passed++
		} else if first == nil {
			first = err
		}
	}
	if passed == len(schemas) || word == "anyOf" && passed > 0 {
		return nil
	}
	return first
}

func validateObject(schema map[string]any, word string, value any, at string) error {
	object, ok := value.(map[string]any)
	if !ok {
		return nil
	}
	switch arg := schema[word].(type) {
	case []any: // required
		for _, key := range arg {
			if _, found := object[key.(string)]; !found {
				return fmt.Errorf("%s: %v is missing", at, key)
			}
		}
	case bool, map[string]any:
		properties, _ := schema["properties"].(map[string]any)
		for key, v := range object {
			inner, known := properties[key].(map[string]any)
			switch rest, _ := arg.(map[string]any); {
			case word == "dependentSchemas":
				if then, found := rest[key].(map[string]any); found {
					if err := validate(then, value, at); err != nil {
						return err
					}
				}
				continue
			case !known && rest == nil:
				return fmt.Errorf("%s: %s is unknown", at, key)
			case !known:
				inner = rest
			}
			if err := validate(inner, v, at+"."+key); err != nil {
				return err
			}
		}
	}
	return nil
}

func isOneOf(types, value any) bool {
	list, ok := types.([]any)
	if !ok {
		list = []any{types}
	}
	for _, t := range list {
		n, isNumber := value.(float64)
		_, isString := value.(string)
		_, isBool := value.(bool)
		_, isList := value.([]any)
		_, isObject := value.(map[string]any)
		switch {
		case t == "null" && value == nil, t == "string" && isString, t == "boolean" && isBool, t == "array" && isList,
			t == "object" && isObject, t == "number" && isNumber, t == "integer" && isNumber && n == float64(int64(n)):
			return true
		}
	}
	return false
}
