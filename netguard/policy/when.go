package policy

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
)

const (
	maxExpression = 4 << 10 // bytes of a `when`
	// whenCost bounds one evaluation, in CEL's cost units: some milliseconds at
	// most, also for a header of 64 KiB under a regular expression.
	whenCost = 200_000
)

// whenEnv declares what an expression can ask about.
var whenEnv = sync.OnceValues(func() (*cel.Env, error) {
	text := cel.StringType
	return cel.NewEnv(
		cel.Variable("protocol", text),
		cel.Variable("host", text),
		cel.Variable("port", cel.IntType),
		cel.Variable("address", text),
		cel.Variable("method", text),
		cel.Variable("path", text),
		cel.Variable("query", cel.MapType(text, cel.ListType(text))),
		cel.Variable("headers", cel.MapType(text, text)),
		cel.Variable("kind", text),
		cel.Variable("command", text),
		cel.Variable("service", text),
		cel.Variable("repository", text),
		cel.Variable("user", text),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(64),
		cel.RegexProgramSizeLimit(2000),
	)
})

func compileWhen(expression string) (cel.Program, error) {
	env, err := whenEnv()
	if err != nil {
		return nil, fmt.Errorf("preparing CEL: %w", err)
	}
	ast, issues := env.Compile(expression)
	if err := issues.Err(); err != nil {
		// The library's text is a drawing over several lines.
		line, _, _ := strings.Cut(err.Error(), "\n")
		return nil, errors.New(strings.TrimPrefix(line, "ERROR: "))
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("the expression is of type %s: it has to be true or false", ast.OutputType())
	}
	return env.Program(ast, cel.CostLimit(whenCost), cel.EvalOptions(cel.OptOptimize))
}

// holds evaluates a rule's `when`. Where the path has several readings, one
// that stops counts for a rule that stops, and all must hold for one that lets through.
func (q *query) holds(p cel.Program, stops bool) (bool, error) {
	for i := range max(len(q.paths), 1) {
		reading := *q
		if len(q.paths) > 0 {
			reading.paths = q.paths[i : i+1]
		}
		out, _, err := p.Eval(&reading)
		if err != nil {
			return false, err
		}
		value, ok := out.Value().(bool)
		if !ok {
			return false, fmt.Errorf("the expression gave %s", out.Type().TypeName())
		}
		if value == stops {
			return value, nil
		}
	}
	return !stops, nil
}

// ResolveName implements cel.Activation: only what an expression asks for is made.
func (q *query) ResolveName(name string) (any, bool) {
	switch name {
	case "protocol":
		return string(q.Protocol), true
	case "host":
		return q.host.String(), true
	case "port":
		return int64(q.Port), true
	case "address":
		if !q.Addr.IsValid() {
			return "", true
		}
		return q.Addr.Unmap().String(), true
	case "method":
		return q.HTTP.Method, true
	case "path":
		if len(q.paths) == 0 {
			return "", true
		}
		return q.paths[0], true
	case "query":
		values, err := url.ParseQuery(q.HTTP.Query)
		if err != nil {
			return err, true
		}
		return map[string][]string(values), true
	case "headers":
		headers := make(map[string]string, len(q.HTTP.Header))
		for k, v := range q.HTTP.Header {
			headers[strings.ToLower(k)] = strings.Join(v, ", ")
		}
		return headers, true
	case "kind":
		return string(q.SSH.Kind), true
	case "command":
		return q.SSH.Command, true
	case "user":
		return q.SSH.User, true
	case "service", "repository":
		service, repository, _ := ParseGitCommand(q.SSH.Command)
		if name == "service" {
			return service, true
		}
		return repository, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (q *query) Parent() cel.Activation { return nil }
